"""The plots, as Vega-Lite specifications. The page sets their parameters ``aesthetic`` and ``nsfw`` as sliders move.

Colours are names with a ``$``, which the page replaces by those of its light or dark style.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_curate.report.scores import Axis, Grid

MOST_BARS, MOST_CELLS = 60, 40
# Where counts differ more than this, the small ones could not be seen on a linear scale.
_LOGARITHMIC = 50


def _spec(description: str, height: int, **parts: Any) -> dict[str, Any]:
    return {
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        **parts,
    }


def _params(*axes: Axis | None) -> list[dict[str, Any]]:
    return [{"name": axis.name, "value": axis.threshold} for axis in axes if axis]


def shows_threshold(axis: Axis) -> bool:
    """Whether the run's threshold is near enough to the scores to be drawn with them."""
    low, high = axis.lattice[0], axis.lattice[-1]
    return 2 * low - high <= axis.threshold <= 2 * high - low


def _scale(axis: Axis) -> dict[str, Any]:
    shown = [axis.lattice[0], axis.lattice[-1], *([axis.threshold] if shows_threshold(axis) else [])]
    return {"domain": [min(shown), max(shown)], "nice": False, "zero": False}


def _passes(axis: Axis) -> str:
    """Whether a bin from ``{name}0`` to ``{name}1`` passes the threshold."""
    return f"datum.{axis.name}0 >= {axis.name}" if axis.keeps_above else f"datum.{axis.name}1 <= {axis.name}"


def _rule(axis: Axis, channel: str) -> dict[str, Any]:
    encoding = {"datum": {"expr": axis.name}, "type": "quantitative"}
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "clip": True, "strokeWidth": 2, "strokeDash": [6, 3], "color": "$line"},
        "encoding": {channel: encoding},
    }


def _count_axis(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Linear, or logarithmic where it must be, and then the title says so."""
    nonzero = counts[counts > 0]
    domain = [0, int(counts.max())]
    if len(nonzero) == 0 or nonzero.max() <= _LOGARITHMIC * np.median(nonzero):
        return {
            "title": "images",
            "scale": {"domain": domain, "nice": True},
            "axis": {"tickCount": 4, "tickMinStep": 1, "format": "~s"},
        }
    powers = [0, *(10**n for n in range(len(str(nonzero.max()))))]
    return {
        "title": "images (log scale)",
        "scale": {"type": "symlog", "domain": domain},
        "axis": {"values": powers, "format": "~s", "labelOverlap": True},
    }


def histogram(grid: Grid, axis: Axis, description: str) -> dict[str, Any]:
    """The images by one score: bars, and over them the part that the threshold keeps."""
    edges, cells = axis.edges(MOST_BARS), grid.marginal(axis)
    name = axis.name
    values = []
    for cell in np.flatnonzero(cells).tolist():
        # Between two stops, so that a bar is split exactly where the threshold stands.
        at = bisect.bisect_right(edges, axis.stops[cell - 1]) - 1
        values.append(
            {
                f"{name}0": axis.stops[cell - 1],
                f"{name}1": axis.stops[cell],
                "from": edges[at],
                "to": edges[at + 1],
                "n": int(cells[cell]),
            }
        )
    bins = axis.into_bins(cells, 0, MOST_BARS)
    y = {"field": "images", "type": "quantitative", "stack": None, **_count_axis(bins)}
    total = [{"aggregate": [{"op": "sum", "field": "n", "as": "images"}], "groupby": ["from", "to"]}]
    bar = {"type": "bar", "binSpacing": 1, "minBandSize": 1}
    encoding = {
        "x": {
            "field": "from",
            "bin": {"binned": True},
            "title": axis.title,
            "type": "quantitative",
            "scale": _scale(axis),
            "axis": {"tickCount": 6, "labelFlush": True},
        },
        "x2": {"field": "to"},
        "y": y,
        "tooltip": [
            {"field": "from", "title": "from"},
            {"field": "to", "title": "to"},
            {"field": "images", "title": "images", "format": ","},
        ],
    }
    return _spec(
        description,
        190,
        params=_params(axis),
        data={"values": values},
        layer=[
            {"transform": total, "mark": {**bar, "color": "$dropped"}, "encoding": encoding},
            {
                "transform": [{"filter": _passes(axis)}, *total],
                "mark": {**bar, "color": "$kept"},
                "encoding": encoding,
            },
            _rule(axis, "x"),
        ],
    )


def density(grid: Grid, x: Axis, y: Axis, description: str) -> dict[str, Any]:
    """The images by both scores: the more in a cell, the stronger its colour; faint where a threshold drops them."""
    x_edges, y_edges = x.edges(MOST_CELLS), y.edges(MOST_CELLS)
    counts = grid.binned(MOST_CELLS)
    values = [
        {
            f"{x.name}0": x_edges[i],
            f"{x.name}1": x_edges[i + 1],
            f"{y.name}0": y_edges[j],
            f"{y.name}1": y_edges[j + 1],
            "n": int(counts[i, j]),
        }
        for i, j in np.argwhere(counts).tolist()
    ]

    def position(axis: Axis) -> dict[str, Any]:
        return {
            "field": f"{axis.name}0",
            "bin": {"binned": True},
            "title": axis.title,
            "type": "quantitative",
            "scale": _scale(axis),
            "axis": {"tickCount": 6, "grid": False},
        }

    encoding = {
        "x": position(x),
        "x2": {"field": f"{x.name}1"},
        "y": position(y),
        "y2": {"field": f"{y.name}1"},
        "color": {
            "field": "n",
            "type": "quantitative",
            "scale": {"type": "log", "domain": [1, max(int(counts.max()), 2)], "range": ["$few", "$many"]},
            "legend": {"title": "images", "orient": "top", "gradientLength": 160, "tickCount": 4, "format": "~s"},
        },
        "opacity": {"condition": {"test": f"{_passes(x)} && {_passes(y)}", "value": 1}, "value": 0.45},
        "tooltip": [
            {"field": f"{x.name}0", "title": f"{x.title} from"},
            {"field": f"{y.name}0", "title": f"{y.title} from"},
            {"field": "n", "title": "images", "format": ","},
        ],
    }
    return _spec(
        description,
        340,
        params=_params(x, y),
        layer=[
            {"data": {"values": values}, "mark": {"type": "rect", "clip": True}, "encoding": encoding},
            _rule(x, "x"),
            _rule(y, "y"),
        ],
    )


def bars(rows: list[tuple[str, int, int]], title: str, description: str) -> dict[str, Any]:
    """Images by bucket, each with a name, how many were written and how many a filter rejected."""
    values = [
        {"bucket": name, "what": what, "n": n, "order": order}
        for name, written, rejected in rows
        for order, (what, n) in enumerate((("written", written), ("rejected", rejected)))
    ]
    return _spec(
        description,
        24 * len(rows),
        data={"values": values},
        mark={"type": "bar"},
        encoding={
            "y": {"field": "bucket", "type": "nominal", "sort": None, "title": title},
            "x": {
                "field": "n",
                "type": "quantitative",
                "title": "images",
                "axis": {"tickCount": 4, "tickMinStep": 1, "format": "~s"},
            },
            "color": {
                "field": "what",
                "type": "nominal",
                "scale": {"domain": ["written", "rejected"], "range": ["$kept", "$dropped"]},
                "legend": {"title": None, "orient": "top"},
            },
            "order": {"field": "order"},
            "tooltip": [{"field": "bucket", "title": title}, {"field": "what"}, {"field": "n", "title": "images"}],
        },
    )

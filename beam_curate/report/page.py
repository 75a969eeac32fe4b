"""From the facts to the page: one HTML file with its style, its script, its plots and its pictures inside.

Everything that comes from data reaches the page through Jinja's escaping, or as JSON in which no tag can begin. The
page's own policy (CSP) allows the two scripts by their digests, and nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_curate.formats.manifest import sidecars_of
from beam_curate.options import CurateOptions
from beam_curate.records import (
    ABOVE_NSFW_THRESHOLD,
    BELOW_AESTHETIC_THRESHOLD,
    MODEL_ERROR,
    NO_IMAGE,
    SPLIT_SAMPLE,
    TOO_MANY_PIXELS,
    TRUNCATED_TAR,
    UNDECODABLE,
    UNREADABLE_TAR,
)
from beam_curate.report import plots
from beam_curate.report.facts import RATIOS, SIDES, Facts, Picture, Sheet
from beam_curate.report.scores import Axis

_HERE = Path(__file__).parent
_MOST_SHARDS, _MOST_INPUTS, _LONGEST_VALUE, _LONGEST_COMMAND = 200, 50, 500, 20_000
# Pictures from here on are blurred, even where the run's threshold lets more pass.
_BLUR_FROM = 0.5

_REASONS = {
    UNREADABLE_TAR: "a tar of which nothing could be read",
    TRUNCATED_TAR: "a tar that could be read up to a point",
    NO_IMAGE: "a sample without an image",
    SPLIT_SAMPLE: "the rest of a sample whose members are not adjacent",
    UNDECODABLE: "an image that cannot be decoded",
    TOO_MANY_PIXELS: "an image with more than --max_image_pixels",
    MODEL_ERROR: "an image for which the model gave no finite numbers",
    BELOW_AESTHETIC_THRESHOLD: "an aesthetic score below the threshold",
    ABOVE_NSFW_THRESHOLD: "an NSFW score at or above the threshold",
}
_RATIO_NAMES = (
    "below 1:3",
    "1:3 to 1:2",
    "1:2 to 2:3",
    "2:3 to 4:5",
    "4:5 to 0.95",
    "square (±5 %)",
    "1.05 to 5:4",
    "5:4 to 3:2",
    "3:2 to 2:1",
    "2:1 to 3:1",
    "3:1 and above",
)


@dataclass(frozen=True)
class Plot:
    """A plot, the sentence that says what it shows, and its numbers as a table: heads, then rows."""

    id: str
    title: str
    text: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    spec: dict[str, Any]


def render(facts: Facts, thumbnails: Mapping[Picture, str | None], output_dir: str, embeddings_dir: str | None) -> str:
    """The whole page.

    Args:
      thumbnails: a ``data:`` URI for each picture of the sheets, or None.
      output_dir, embeddings_dir: as the command on the page shall name them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    axes = [axis for axis in (facts.aesthetic, facts.nsfw) if axis]
    scored = facts.grid.total > 0 and all(axis.lattice for axis in axes)
    score_plots = _score_plots(facts, axes) if scored else []
    shape_plots = _shape_plots(facts)
    document = facts.document
    data = {
        "read": document["images"]["read"],
        "written": document["images"]["written"],
        "axes": {
            axis.name: {"stops": axis.stops, "start": axis.start, "keepsAbove": axis.keeps_above} for axis in axes
        },
        "cells": facts.grid.triples(),
        "specs": {plot.id: plot.spec for plot in (*score_plots, *shape_plots)},
    }
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": _count, "share": _share, "score": _score, "size": _size, "threshold": number}
    return environment.get_template("page.html.j2").render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        vega=_vega(),
        script=script,
        script_digests=[_digest(_vega()), _digest(script)],
        data=_json(data),
        output_dir=output_dir,
        document=document,
        images=document["images"],
        funnel=_funnel(facts),
        notes=_notes(facts, axes),
        stored=facts.store is not None,
        axes=axes,
        scored=scored,
        command=command(facts, output_dir, embeddings_dir),
        score_plots=score_plots,
        shape_plots=shape_plots,
        sheets=[_sheet(sheet, thumbnails, facts) for sheet in facts.sheets] if scored else [],
        reasons=_reasons(facts),
        formats=_formats(facts),
        captions=facts.captions,
        duplicates=facts.duplicates,
        models=_models(document),
        config=[(name, _value(value)) for name, value in sorted(document["config"].items())],
        inputs=document["input"][:_MOST_INPUTS],
        shards=document["shards"][:_MOST_SHARDS],
    )


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script that needs no network."""
    from vl_convert import javascript_bundle

    # Inside a function: its one-letter names would be the page's.
    return f"(() => {{{javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();"


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no tag and no comment can begin or end in it."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def command(facts: Facts, output_dir: str, embeddings_dir: str | None) -> str | None:
    """The command that curates the same input in place, without the thresholds that the page has sliders for.

    None where the dataset was not made by a command, or by one too long to show.
    """
    document = facts.document
    config = document["config"]
    if not document["input"]:
        return None
    words = ["beam-curate", f"--input={shlex.quote(','.join(document['input']))}"]
    words.append(f"--output_dir={shlex.quote(output_dir)}")
    if embeddings_dir is not None:
        words.append(f"--embeddings_dir={shlex.quote(embeddings_dir)}")
    parser = argparse.ArgumentParser(add_help=False)
    CurateOptions._add_argparse_args(parser)
    sliders = {f"{axis.name}_threshold" for axis in (facts.aesthetic, facts.nsfw) if axis}
    for name, value in sorted(config.items()):
        known = any(action.dest == name for action in parser._actions)
        if name in sliders or not known or value == parser.get_default(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no{name}")
        elif name != "precision":
            words.append(f"--{name}={shlex.quote(str(value))}")
    if facts.store is None and "precision" in config:
        # Where the embeddings are stored, the run takes them as they are; else they must be made in the same way.
        words.append(f"--precision={config['precision']}")
    if sidecars := sidecars_of(document):
        words.append(f"--sidecars={','.join(sidecars)}")
    words.append("--overwrite")
    text = " ".join(words)
    return text if len(text) <= _LONGEST_COMMAND else None


def _funnel(facts: Facts) -> list[tuple[str, int]]:
    images = facts.document["images"]
    rejected = images["rejected"]
    below, above = (rejected.get(reason, 0) for reason in (BELOW_AESTHETIC_THRESHOLD, ABOVE_NSFW_THRESHOLD))
    readable = images["read"] - (sum(rejected.values()) - below - above)
    steps = [("read", images["read"]), ("readable", readable)]
    if facts.aesthetic:
        steps.append((f"aesthetic score at least {number(facts.aesthetic.threshold)}", readable - below))
    if facts.nsfw:
        steps.append((f"NSFW score below {number(facts.nsfw.threshold)}", readable - below - above))
    return [*steps, ("written", images["written"])]


def _notes(facts: Facts, axes: list[Axis]) -> list[str]:
    """What is missing from this page, and why."""
    notes = []
    if facts.document["images"]["read"] == 0:
        notes.append("There was no image in the input.")
    elif not axes:
        notes.append("The dataset was curated without heads, so there are no scores and no thresholds to move.")
    elif facts.grid.total == 0:
        notes.append("No image has a score, so there is nothing to draw and no threshold to move.")
    if facts.unscored and axes:
        notes.append(
            f"{_count(facts.unscored)} images have no score that is a number. No threshold keeps them, and they are "
            "not in the plots and sheets."
        )
    for name, axis in (("aesthetic", facts.aesthetic), ("NSFW", facts.nsfw)):
        if axis is None and axes:
            notes.append(f"The dataset was curated without an {name} head: there are no {name} scores.")
    if facts.nsfw is None:
        notes.append("Without NSFW scores no picture on this page is blurred.")
    if facts.store is None:
        notes.append(
            "There is no embedding store with this dataset. Formats of rejected images are therefore not known, and "
            "another threshold means that every image is embedded again."
        )
    return notes


def _score_plots(facts: Facts, axes: list[Axis]) -> list[Plot]:
    found = []
    for axis in axes:
        cells = facts.grid.marginal(axis)
        bins, edges = axis.into_bins(cells, 0, plots.MOST_BARS), axis.edges(plots.MOST_BARS)
        passing = facts.grid.passing((axis,))
        sign = "at least" if axis.keeps_above else "below"
        quarter, half, three_quarters = (number(_quantile(axis, cells, q)) for q in (0.25, 0.5, 0.75))
        where = "the dashed line" if plots.shows_threshold(axis) else "far outside this plot"
        text = (
            f"Half of the {_count(facts.grid.total)} scored images have a score below about {half}, a quarter below "
            f"{quarter}, a quarter above {three_quarters}. {_count(passing)} are {sign} this run's threshold of "
            f"{number(axis.threshold)}, {where}."
        )
        rows = [(f"{number(edges[i])} to {number(edges[i + 1])}", _count(int(n))) for i, n in enumerate(bins) if n]
        title = axis.title[0].upper() + axis.title[1:]
        spec = plots.histogram(facts.grid, axis, f"Histogram of the {axis.title}. {text}")
        found.append(Plot(f"plot-{axis.name}", title, text, (axis.title, "images"), rows, spec))
    if facts.aesthetic and facts.nsfw:
        both = facts.grid.passing((facts.aesthetic, facts.nsfw))
        only = [facts.grid.passing((axis,)) - both for axis in (facts.aesthetic, facts.nsfw)]
        neither = facts.grid.total - both - sum(only)
        text = (
            f"At this run's thresholds {_count(both)} images pass both, {_count(only[0])} only the aesthetic one, "
            f"{_count(only[1])} only the NSFW one, {_count(neither)} neither."
        )
        rows = [
            ("both", _count(both)),
            ("only the aesthetic threshold", _count(only[0])),
            ("only the NSFW threshold", _count(only[1])),
            ("neither", _count(neither)),
        ]
        spec = plots.density(facts.grid, facts.aesthetic, facts.nsfw, f"Joint density of both scores. {text}")
        found.append(Plot("plot-both", "Both scores", text, ("passes", "images"), rows, spec))
    return found


def _quantile(axis: Axis, cells: npt.NDArray[np.int64], share: float) -> float:
    """The stop up to which about this share of the images lies."""
    cell = int(np.searchsorted(np.cumsum(cells), share * int(cells.sum())))
    return axis.stops[min(cell, len(axis.stops) - 1)]


def _shape_plots(facts: Facts) -> list[Plot]:
    names = [f"below {SIDES[1]} px", *(f"{low} to {high - 1} px" for low, high in itertools.pairwise(SIDES[1:]))]
    names.append(f"{SIDES[-1]} px and above")
    found = []
    for id, title, what, buckets, counts in (
        ("plot-sides", "Dimensions", "shorter side", names, facts.sides),
        ("plot-ratios", "Aspect ratios", "width : height", _RATIO_NAMES, facts.ratios),
    ):
        assert len(buckets) == len(counts[0]) == len(SIDES if id == "plot-sides" else RATIOS)
        rows = [(name, int(written), int(rejected)) for name, written, rejected in zip(buckets, *counts, strict=True)]
        filled = [i for i, (_, written, rejected) in enumerate(rows) if written + rejected]
        if not filled:
            continue
        rows = rows[filled[0] : filled[-1] + 1]
        most = max(rows, key=lambda row: row[1] + row[2])
        text = (
            f"The commonest is \u201c{most[0]}\u201d, with {_count(most[1] + most[2])} of {_count(int(counts.sum()))} "
            "images. Rejected ones are those that a threshold dropped."
        )
        table = [(name, _count(written), _count(rejected)) for name, written, rejected in rows]
        spec = plots.bars(rows, what, f"Images by {what}. {text}")
        found.append(Plot(id, title, text, (what, "written", "rejected"), table, spec))
    return found


def _sheet(sheet: Sheet, thumbnails: Mapping[Picture, str | None], facts: Facts) -> dict[str, Any]:
    axis = sheet.axis
    below, above = ("fail it", "pass it") if axis.keeps_above else ("pass it", "fail it")
    at_most = _BLUR_FROM if facts.nsfw is None else min(_BLUR_FROM, facts.nsfw.threshold)

    def cells(pictures: list[Picture]) -> list[dict[str, Any]]:
        return [
            {
                "picture": picture,
                "thumbnail": thumbnails.get(picture),
                "blurred": picture.nsfw is not None and picture.nsfw >= at_most,
            }
            for picture in pictures
        ]

    return {
        "title": axis.title,
        "groups": [
            ("Lowest to highest", cells(sheet.spread)),
            (f"Just below the threshold of {number(axis.threshold)}: these {below}", cells(sheet.below[::-1])),
            (f"At or just above {number(axis.threshold)}: these {above}", cells(sheet.above)),
        ],
    }


def _reasons(facts: Facts) -> list[dict[str, Any]]:
    counts: dict[str, int] = {**facts.document["images"]["rejected"], **facts.tar_reasons}
    return [
        {
            "reason": reason,
            "count": count,
            "meaning": _REASONS.get(reason, ""),
            "examples": facts.examples.get(reason, []),
        }
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _formats(facts: Facts) -> list[tuple[str, int, int]]:
    written, rejected = facts.formats
    names = sorted({*written, *rejected}, key=lambda name: (name is None, -written[name or ""], name or ""))
    return [(name or "not known", written[name or ""], rejected[name]) for name in names]


def _models(document: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (title, [(key, _value(value)) for key, value in sorted((document["models"].get(name) or {}).items())])
        for name, title in (("encoder", "Encoder"), ("aesthetic_head", "Aesthetic head"), ("nsfw_head", "NSFW head"))
    ]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "\u2026"


def number(value: float) -> str:
    """The shortest decimal that is this very number: ``5``, ``0.25``."""
    return repr(value).removesuffix(".0")


def _count(number: int) -> str:
    return f"{number:,}"


def _share(number: int, whole: int) -> str:
    return f"{100 * number / whole:.1f}%" if whole else "0%"


def _score(score: float | None) -> str:
    return "none" if score is None else f"{score:.4f}"


def _size(number: int) -> str:
    """Bytes, as a person reads them."""
    if number < 1000:
        return f"{number} bytes"
    power = min((len(str(number)) - 1) // 3, 4)
    return f"{number / 1000**power:.3g} {('KB', 'MB', 'GB', 'TB')[power - 1]}"

"""Thresholds and counts: exact at every stop, for every pair."""

from __future__ import annotations

import numpy as np
import pytest

from beam_curate.report.plots import MOST_BARS, MOST_CELLS
from beam_curate.report.scores import Grid, make_axis


def axes(aesthetic, nsfw, thresholds=(5.0, 0.5)):
    def bounds(scores):
        return (float(scores.min()), float(scores.max())) if len(scores) else None

    return (
        make_axis("aesthetic", "aesthetic score", True, thresholds[0], bounds(aesthetic)),
        make_axis("nsfw", "NSFW score", False, thresholds[1], bounds(nsfw)),
    )


def scores(seed: int, n: int):
    """Scores as the heads give them, float32, many of them exactly at a round number."""
    rng = np.random.default_rng(seed)
    aesthetic, nsfw = rng.normal(4.5, 1.2, n), rng.beta(0.3, 3, n)
    aesthetic[::3] = aesthetic[::3].round(1)
    nsfw[::3] = nsfw[::3].round(2)
    return (values.astype(np.float32).astype(np.float64) for values in (aesthetic, nsfw))


@pytest.mark.parametrize("thresholds", [(5.0, 0.5), (4.777777, 0.123456), (-100.0, 100.0)])
def test_the_grid_counts_what_the_filters_keep_at_every_pair_of_stops(thresholds):
    aesthetic, nsfw = scores(1, 3000)
    x, y = axes(aesthetic, nsfw, thresholds)
    grid = Grid(x, y)
    for start in range(0, 3000, 700):
        grid.add(aesthetic[start : start + 700], nsfw[start : start + 700])
    assert x.stops[x.start] == thresholds[0]
    assert y.stops[y.start] == thresholds[1]
    triples = np.array(grid.triples())
    for i, t in enumerate(x.stops):
        for j, u in enumerate(y.stops):
            expected = np.count_nonzero((aesthetic >= t) & (nsfw < u))
            counted = triples[(triples[:, 0] > i) & (triples[:, 1] <= j), 2].sum()
            assert counted == expected == grid.counts[x.kept_cells(i), y.kept_cells(j)].sum()
    assert grid.passing((x, y)) == np.count_nonzero((aesthetic >= thresholds[0]) & (nsfw < thresholds[1]))


def test_the_first_and_the_last_stop_keep_everything_or_nothing():
    aesthetic, nsfw = scores(2, 500)
    x, y = axes(aesthetic, nsfw)
    assert x.lattice[0] <= aesthetic.min() and y.lattice[0] <= nsfw.min()
    assert aesthetic.max() < x.lattice[-1] and nsfw.max() < y.lattice[-1]
    assert 80 <= len(x.lattice) <= 203 and 80 <= len(y.lattice) <= 203


@pytest.mark.parametrize("values", [[3.25], [0.0], [0.1, 0.1], [-2e9, 7e9], [1e-9, 1.5e-9], [5.0, 5.0000005]])
def test_any_range_of_scores_has_stops(values):
    values = np.array(values, np.float32).astype(np.float64)
    x, _ = axes(values, values)
    assert x.lattice[0] <= values.min() and values.max() < x.lattice[-1]
    assert len(set(x.stops)) == len(x.stops) <= 205
    assert x.cells(values).min() > 0


def test_no_scores_leave_the_threshold_alone():
    x, _ = axes(np.zeros(0), np.zeros(0))
    assert x.stops == (5.0,) and x.lattice == ()


@pytest.mark.parametrize("thresholds", [(5.0, 0.5), (4.777777, 0.123456), (-100.0, 100.0)])
def test_bins_hold_what_lies_between_their_edges(thresholds):
    aesthetic, nsfw = scores(3, 2000)
    x, y = axes(aesthetic, nsfw, thresholds)
    grid = Grid(x, y)
    grid.add(aesthetic, nsfw)
    for axis, values in ((x, aesthetic), (y, nsfw)):
        expected, _ = np.histogram(values, axis.edges(MOST_BARS))
        np.testing.assert_array_equal(axis.into_bins(grid.marginal(axis), 0, MOST_BARS), expected)
    both, _, _ = np.histogram2d(aesthetic, nsfw, [x.edges(MOST_CELLS), y.edges(MOST_CELLS)])
    np.testing.assert_array_equal(grid.binned(MOST_CELLS), both)

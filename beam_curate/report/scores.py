"""Where thresholds can stand, and how many images every pair of them would keep.

A slider has a fixed number of stops. Images are counted in the cells between the stops, so the count at every pair of
stops is exact, whatever the size of the dataset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

_MOST_STEPS = 200


@dataclass(frozen=True)
class Axis:
    """One score and the stops of its slider.

    Attributes:
      name: ``aesthetic`` or ``nsfw``, as in the flags.
      title: what a person calls it.
      keeps_above: keep ``score >= threshold``; otherwise ``score < threshold``.
      threshold: the run's own, which is one of the stops.
      lattice: equally spaced numbers, the first at most the least score, the last above the greatest.
      stops: lattice and threshold, ascending.
    """

    name: str
    title: str
    keeps_above: bool
    threshold: float
    lattice: tuple[float, ...]
    stops: tuple[float, ...]

    @property
    def start(self) -> int:
        """Which stop is the run's own threshold."""
        return self.stops.index(self.threshold)

    def cells(self, scores: Numbers) -> npt.NDArray[np.int64]:
        """For each score how many stops are not above it. No score may be NaN."""
        return np.searchsorted(np.array(self.stops), scores, side="right").astype(np.int64)

    def edges(self, most: int) -> list[float]:
        """At most ``most`` bins, whose edges are lattice points."""
        every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, 200, 500) if (len(self.lattice) - 1) / n <= most)
        return [*self.lattice[:-1:every], *self.lattice[-1:]]

    def into_bins(self, counts: npt.NDArray[np.int64], dimension: int, most: int) -> npt.NDArray[np.int64]:
        """Adds up the cells of one dimension between the edges that ``most`` gives. Every score lies between them."""
        # Cell c holds the scores from stop c - 1 on, so a bin begins at the cell after its lower edge.
        starts = [self.stops.index(edge) + 1 for edge in self.edges(most)[:-1]]
        return np.add.reduceat(counts, starts, axis=dimension)

    def kept_cells(self, stop: int) -> slice:
        """The cells of the images that a threshold keeps."""
        return slice(stop + 1, None) if self.keeps_above else slice(0, stop + 1)


def make_axis(name: str, title: str, keeps_above: bool, threshold: float, bounds: tuple[float, float] | None) -> Axis:
    """Lays 80 to 200 round numbers over the scores.

    Args:
      bounds: the least and the greatest score; None if there is no score.
    """
    lattice = _lattice(*bounds) if bounds is not None and all(map(math.isfinite, bounds)) else ()
    return Axis(name, title, keeps_above, threshold, lattice, tuple(sorted({*lattice, threshold})))


def _lattice(low: float, high: float) -> tuple[float, ...]:
    span = (high - low) or max(abs(high), 1.0)
    exponent = math.floor(math.log10(span / _MOST_STEPS))
    digit = next(digit for digit in (1, 2, 5, 10) if span / (digit * 10.0**exponent) <= _MOST_STEPS)
    digits = max(-exponent, 0)

    def number(k: int) -> float:
        return round(k * digit * 10.0**exponent, digits)

    first, last = math.floor(low / (digit * 10.0**exponent)), math.floor(high / (digit * 10.0**exponent)) + 1
    while number(first) > low:
        first -= 1
    while number(last) <= high:
        last += 1
    return tuple(number(k) for k in range(first, last + 1))


class Grid:
    """How many images lie in each cell of one or two axes. An axis that is None has one cell."""

    def __init__(self, aesthetic: Axis | None, nsfw: Axis | None):
        self.axes = (aesthetic, nsfw)
        self.counts = np.zeros([len(axis.stops) + 1 if axis else 1 for axis in self.axes], np.int64)

    def add(self, aesthetic: Numbers, nsfw: Numbers) -> None:
        """Counts images by their two scores; the score of a missing axis is not looked at."""
        cells = [
            axis.cells(scores) if axis else np.zeros(len(scores), np.int64)
            for axis, scores in zip(self.axes, (aesthetic, nsfw), strict=True)
        ]
        flat = np.ravel_multi_index((cells[0], cells[1]), self.counts.shape)
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def passing(self, chosen: tuple[Axis | None, ...]) -> int:
        """How many images the run's thresholds of the chosen axes keep."""
        cells = tuple(axis.kept_cells(axis.start) if axis in chosen and axis else slice(None) for axis in self.axes)
        return int(self.counts[cells].sum())

    def triples(self) -> list[list[int]]:
        """The cells that are not empty: [aesthetic cell, NSFW cell, images]."""
        where = np.argwhere(self.counts)
        return np.column_stack([where, self.counts[where[:, 0], where[:, 1]]]).tolist()

    def marginal(self, axis: Axis) -> npt.NDArray[np.int64]:
        """The counts of one axis' cells."""
        return np.asarray(self.counts.sum(axis=1 - self.axes.index(axis)))

    def binned(self, most: int) -> npt.NDArray[np.int64]:
        """The counts between the edges that both axes give for ``most`` bins, int64 ``[bins, bins]``."""
        counts = self.counts
        for dimension, axis in enumerate(self.axes):
            if axis is not None:
                counts = axis.into_bins(counts, dimension, most)
        return counts

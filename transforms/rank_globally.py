"""RankGlobally: one order of the whole dataset, by (source URI, index in the tar), whatever order elements come in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PCollection

from beam_curate.records import ImageRecord, Rejection

Ranked = tuple[int, Any]


@dataclass(frozen=True)
class Order:
    """The order of all elements: how many there are, a digest over them all, and the rank of each source's first."""

    total: int
    digest: bytes
    bases: dict[str, int] = field(default_factory=dict)


class RankGloballyResult(NamedTuple):
    """``ranked``: PCollection of (rank, element), ranks from 0 up. ``order``: PCollection of one ``Order``."""

    ranked: PCollection[Ranked]
    order: PCollection[Order]


def in_order(elements: Iterable[ImageRecord | Rejection]) -> list[Any]:
    """The elements of one source in order; what is about the whole tar comes last."""
    return sorted(elements, key=lambda element: (element.index is None, element.index or 0))


class RankGlobally(beam.PTransform[PCollection[Any], RankGloballyResult]):
    """Ranks elements by (source, index). Only counts and digests of each source are brought together in one place.

    Args:
      content: the bytes of an element that go into the order's digest.
    """

    def __init__(self, content: Callable[[Any], bytes]):
        super().__init__()
        self._content = content

    def expand(self, elements: PCollection[Any]) -> RankGloballyResult:
        sources = elements | "KeyBySource" >> beam.Map(_with_source) | "GroupBySource" >> beam.GroupByKey()
        order = (
            sources
            | "Summarize" >> beam.Map(_summarize, self._content)
            | "CombineOrder" >> beam.CombineGlobally(_CombineOrder())
        )
        ranked = sources | "Rank" >> beam.ParDo(_Rank(), beam.pvalue.AsSingleton(order))
        return RankGloballyResult(ranked, order)


def _with_source(element: ImageRecord | Rejection) -> tuple[str, Any]:
    return element.source, element


def _summarize(source: tuple[str, Iterable[Any]], content: Callable[[Any], bytes]) -> tuple[str, int, bytes]:
    digest = hashlib.sha256()
    count = 0
    for element in in_order(source[1]):
        data = content(element)
        digest.update(b"%d " % len(data) + data)
        count += 1
    return source[0], count, digest.digest()


class _CombineOrder(beam.CombineFn):
    """Sorts the sources and sums their counts up; with no source at all, an order of nothing."""

    def create_accumulator(self) -> list[tuple[str, int, bytes]]:
        return []

    def add_input(
        self, sources: list[tuple[str, int, bytes]], source: tuple[str, int, bytes]
    ) -> list[tuple[str, int, bytes]]:
        sources.append(source)
        return sources

    def merge_accumulators(self, parts: Iterable[list[tuple[str, int, bytes]]]) -> list[tuple[str, int, bytes]]:
        return [source for part in parts for source in part]

    def extract_output(self, sources: list[tuple[str, int, bytes]]) -> Order:
        digest = hashlib.sha256()
        bases, total = {}, 0
        for uri, count, content in sorted(sources):
            encoded = uri.encode()
            digest.update(b"%d %d " % (len(encoded), count) + encoded + content)
            bases[uri] = total
            total += count
        return Order(total, digest.digest(), bases)


class _Rank(beam.DoFn):
    def process(self, source: tuple[str, Iterable[Any]], order: Order) -> Iterator[Ranked]:
        base = order.bases[source[0]]
        for position, element in enumerate(in_order(source[1])):
            yield base + position, element

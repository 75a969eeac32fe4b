"""UniqueImageIds: one name for each image of the dataset, where several sources use the same key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.pvalue import PCollection

from beam_curate.records import ImageRecord
from transforms.rank_globally import Ranked

_SUFFIXES = re.compile(r"(-[0-9a-f]{8})+$")
# Rank, image_id, source URI and index of a record: all that its unique name depends on.
Claim = tuple[int, str, str, int]


def stem(image_id: str) -> str:
    """What all names that could ever be made from an id have in common: the id without suffixes like ours."""
    return _SUFFIXES.sub("", image_id)


def settle(claims: Iterable[Claim]) -> Iterator[tuple[int, str]]:
    """Renames among ids with one stem, as (rank, new id).

    The first in order keeps an id. Later ones get ``-`` and 8 hex digits of a SHA-256 over source URI and index; in the
    rare case that this name is taken too, of one over the next number as well.
    """
    ordered = sorted(claims)
    if len(ordered) == 1:
        return
    owners: dict[str, int] = {}
    for rank, image_id, _, _ in ordered:
        owners.setdefault(image_id, rank)
    for rank, image_id, source, index in ordered:
        if owners[image_id] == rank:
            continue
        attempt = 0
        while True:
            seed = f"{source}\n{index}" + (f"\n{attempt}" if attempt else "")
            name = f"{image_id}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
            if name not in owners:
                break
            attempt += 1
        owners[name] = rank
        yield rank, name


class UniqueImageIds(beam.PTransform[PCollection[Ranked], PCollection[tuple[int, str]]]):
    """From ranked records, the (rank, new ``image_id``) of those that cannot keep theirs."""

    def expand(self, ranked: PCollection[Ranked]) -> PCollection[tuple[int, str]]:
        return (
            ranked
            | "KeyByStem" >> beam.Map(_claim)
            | "GroupByStem" >> beam.GroupByKey()
            | "Settle" >> beam.ParDo(_Settle())
        )


def _claim(ranked: Ranked) -> tuple[str, Claim]:
    record: ImageRecord = ranked[1]
    return stem(record.image_id), (ranked[0], record.image_id, record.source, record.index)


class _Settle(beam.DoFn):
    def process(self, group: tuple[str, Iterable[Claim]]) -> Iterator[tuple[int, str]]:
        yield from settle(group[1])

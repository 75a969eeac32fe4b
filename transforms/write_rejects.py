"""WriteRejects: every image and tar that is not in the output, and why, as Parquet."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from beam_curate import metrics
from beam_curate.formats import files, manifest, parquet
from beam_curate.records import Rejection, WrittenRejects
from transforms.rank_globally import Order, Ranked, RankGlobally

_ROWS_PER_PART = 100_000


class WriteRejects(beam.PTransform[PCollection[Rejection], PCollection[WrittenRejects]]):
    """Writes ``_rejects/*.parquet`` in the dataset's global order, in parts of 100,000 rows.

    Gives a PCollection of one ``WrittenRejects`` for each part, which ``WriteShards`` takes into the manifest. A part
    that is there already, as the manifest lists it, is left alone.

    Args:
      output_dir: the dataset's directory.
      overwrite: replace a finished, different dataset.
    """

    def __init__(self, output_dir: str, overwrite: bool = False):
        super().__init__()
        self._output_dir = output_dir
        self._overwrite = overwrite

    def expand(self, rejects: PCollection[Rejection]) -> PCollection[WrittenRejects]:
        ranked = rejects | "Rank" >> RankGlobally(_content)
        return (
            ranked.ranked
            | "KeyByPart" >> beam.Map(_with_part)
            | "GroupByPart" >> beam.GroupByKey()
            | "WritePart"
            >> beam.ParDo(_WritePart(self._output_dir, self._overwrite), beam.pvalue.AsSingleton(ranked.order))
        )


def _content(rejection: Rejection) -> bytes:
    return json.dumps([value.hex() if isinstance(value, bytes) else value for value in astuple(rejection)]).encode()


def _with_part(ranked: Ranked) -> tuple[int, Ranked]:
    return ranked[0] // _ROWS_PER_PART, ranked


class _WritePart(beam.DoFn):
    def __init__(self, output_dir: str, overwrite: bool):
        self._output_dir = output_dir
        self._overwrite = overwrite

    def process(self, part: tuple[int, Iterable[Ranked]], order: Order) -> Iterator[WrittenRejects]:
        index, ranked = part
        digest = hashlib.sha256(order.digest).hexdigest()[:12]
        name = f"{manifest.REJECTS_DIR}/rejects-{digest}-{index:06d}.parquet"
        rejections: list[Rejection] = [rejection for _, rejection in sorted(ranked, key=lambda pair: pair[0])]
        finished = manifest.read(self._output_dir)
        listed = manifest.listed(finished).get(name) if finished is not None else None
        if finished is not None and listed is None:
            manifest.check_replaceable(self._output_dir, self._overwrite)
        if listed is None:
            file = parquet.write_rows(files.join(self._output_dir, name), parquet.REJECTS_SCHEMA, map(_row, rejections))
            listed = (file.size, file.sha256)
        images = Counter(rejection.reason for rejection in rejections if rejection.index is not None)
        tars = len({rejection.source for rejection in rejections if rejection.index is None})
        for reason, count in images.items():
            metrics.count(metrics.rejected(reason), count)
        yield WrittenRejects(index, name, len(rejections), *listed, tuple(sorted(images.items())), tars)


def _row(rejection: Rejection) -> dict[str, Any]:
    row = {field.name: getattr(rejection, field.name) for field in parquet.REJECTS_SCHEMA}
    return {**row, "sha256": rejection.sha256.hex() if rejection.sha256 else None}

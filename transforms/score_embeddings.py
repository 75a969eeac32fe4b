"""ScoreEmbeddings: aesthetic and NSFW scores from the embeddings, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection

from beam_curate.models.heads import HeadSpec, ScoreHead
from beam_curate.records import ImageRecord

_BATCH = 256


class ScoreEmbeddings(beam.PTransform[PCollection[ImageRecord], PCollection[ImageRecord]]):
    """Fills in ``aesthetic_score`` and ``nsfw_score``; without a head, a score stays None.

    Args:
      aesthetic_head, nsfw_head: what ``beam_curate.models.heads.find_head`` found.
    """

    def __init__(self, aesthetic_head: HeadSpec | None, nsfw_head: HeadSpec | None):
        super().__init__()
        self._heads = {"aesthetic_score": aesthetic_head, "nsfw_score": nsfw_head}

    def expand(self, records: PCollection[ImageRecord]) -> PCollection[ImageRecord]:
        heads = {field: head for field, head in self._heads.items() if head is not None}
        if not heads:
            return records
        return (
            records
            | "Batch" >> beam.BatchElements(min_batch_size=_BATCH, max_batch_size=_BATCH)
            | "Score" >> beam.ParDo(_Score(heads))
        )


class _Score(beam.DoFn):
    def __init__(self, heads: dict[str, HeadSpec]):
        self._specs = heads

    def setup(self) -> None:
        self._heads: dict[str, ScoreHead] = {field: spec.load() for field, spec in self._specs.items()}

    def process(self, records: list[ImageRecord]) -> Iterator[ImageRecord]:
        vectors = np.stack([record.vector for record in records])
        scores = {field: head(vectors).tolist() for field, head in self._heads.items()}
        for i, record in enumerate(records):
            yield replace(record, **{field: values[i] for field, values in scores.items()})

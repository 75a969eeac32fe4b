"""The mechanism of FilterAesthetic and FilterNsfw: one score, one threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import DoOutputsTuple, PCollection, TaggedOutput

from beam_curate import metrics
from beam_curate.records import ImageRecord, Rejection
from transforms.embed_images import RECORDS, REJECTS

STAGE = "filter"


class ScoreFilter(beam.PTransform[PCollection[ImageRecord], Any]):
    """Keeps the records whose score is on the right side of a threshold; NaN is on neither.

    Gives a PCollection of ``ImageRecord``; with ``with_rejects`` two, ``records`` and ``rejects`` (``Rejection``).

    Args:
      threshold: compared with the score, a float32.
      with_rejects: give the rejects too.

    Raises:
      ValueError: the threshold is not a finite number.
    """

    score: str  # the field of ImageRecord
    reason: str  # of its rejections

    def __init__(self, threshold: float, with_rejects: bool = False):
        super().__init__()
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number, not {threshold}")
        self.threshold = threshold
        self._with_rejects = with_rejects

    def keeps(self, score: float) -> bool:
        raise NotImplementedError

    def says(self, score: float) -> str:
        """Why a score is not kept."""
        raise NotImplementedError

    def expand(self, records: PCollection[ImageRecord]) -> PCollection[ImageRecord] | DoOutputsTuple:
        outputs = records | "Filter" >> beam.ParDo(_Filter(self)).with_outputs(REJECTS, main=RECORDS)
        return outputs if self._with_rejects else outputs[RECORDS]

    def apply_to(self, record: ImageRecord) -> ImageRecord | Rejection:
        """The record, or its rejection.

        Raises:
          ValueError: the record has no such score.
        """
        score = getattr(record, self.score)
        if score is None:
            raise ValueError(
                f"{record.source}: {record.member} has no {self.score}; apply ScoreEmbeddings with a head first"
            )
        if self.keeps(score):
            return record
        return Rejection(
            record.source,
            record.index,
            record.key,
            STAGE,
            self.reason,
            f"{record.member}: {self.says(score)}",
            record.width,
            record.height,
            record.sha256,
            record.aesthetic_score,
            record.nsfw_score,
        )


class _Filter(beam.DoFn):
    def __init__(self, rule: ScoreFilter):
        self._rule = rule

    def process(self, record: ImageRecord) -> Iterator[ImageRecord | TaggedOutput[str, Rejection]]:
        result = self._rule.apply_to(record)
        if isinstance(result, ImageRecord):
            yield result
        else:
            metrics.count(metrics.IMAGES_FILTERED)
            yield TaggedOutput(REJECTS, result)

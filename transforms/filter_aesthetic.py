"""FilterAesthetic: keeps images that are pleasing enough."""

from __future__ import annotations

from beam_curate.records import BELOW_AESTHETIC_THRESHOLD
from transforms.score_filter import ScoreFilter


class FilterAesthetic(ScoreFilter):
    """Keeps records with ``aesthetic_score >= threshold``. See ``ScoreFilter``."""

    score = "aesthetic_score"
    reason = BELOW_AESTHETIC_THRESHOLD

    def keeps(self, score: float) -> bool:
        return score >= self.threshold

    def says(self, score: float) -> str:
        return f"aesthetic score {score:.6g} is not >= {self.threshold:.6g}"

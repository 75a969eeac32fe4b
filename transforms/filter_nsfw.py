"""FilterNsfw: keeps images that are safe enough."""

from __future__ import annotations

from beam_curate.records import ABOVE_NSFW_THRESHOLD
from transforms.score_filter import ScoreFilter


class FilterNsfw(ScoreFilter):
    """Keeps records with ``nsfw_score < threshold``. See ``ScoreFilter``."""

    score = "nsfw_score"
    reason = ABOVE_NSFW_THRESHOLD

    def keeps(self, score: float) -> bool:
        return score < self.threshold

    def says(self, score: float) -> str:
        return f"NSFW score {score:.6g} is not < {self.threshold:.6g}"

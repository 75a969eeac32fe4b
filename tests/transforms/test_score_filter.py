"""Thresholds: which side keeps, and what is told of the others."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beam_curate.records import ImageRecord
from transforms import FilterAesthetic, FilterNsfw

NAN = float("nan")


def record(index: int, aesthetic: float | None, nsfw: float | None) -> ImageRecord:
    vector = np.zeros(4, "<f2").tobytes()
    return ImageRecord("a.tar", index, "k", "k", "k.jpg", 0, 0, b"", b"\1" * 32, 8, 9, "jpeg", vector, aesthetic, nsfw)


@pytest.mark.parametrize(
    ("rule", "scores", "kept"),
    [
        (FilterAesthetic(5.0), (4.99, 5.0, 5.01, NAN, float("inf")), [False, True, True, False, True]),
        (FilterNsfw(0.5), (0.49, 0.5, 0.51, NAN, 0.0), [True, False, False, False, True]),
    ],
)
def test_which_side_of_the_threshold_keeps(rule, scores, kept):
    records = [record(i, score, score) for i, score in enumerate(scores)]
    assert [rule.apply_to(one) is one for one in records] == kept


def test_what_is_dropped_keeps_both_scores():
    rejection = FilterNsfw(0.5).apply_to(record(3, 6.5, 0.75))
    assert (rejection.reason, rejection.stage, rejection.index) == ("above_nsfw_threshold", "filter", 3)
    assert (rejection.aesthetic_score, rejection.nsfw_score) == (6.5, 0.75)
    assert (rejection.width, rejection.height, rejection.sha256) == (8, 9, b"\1" * 32)
    assert rejection.detail == "k.jpg: NSFW score 0.75 is not < 0.5"
    assert FilterAesthetic(7).apply_to(record(3, 6.5, 0.75)).reason == "below_aesthetic_threshold"


def test_records_without_the_score_are_an_error():
    with pytest.raises(ValueError, match="has no aesthetic_score; apply ScoreEmbeddings"):
        FilterAesthetic(5).apply_to(record(0, None, 0.1))


@pytest.mark.parametrize("threshold", [NAN, float("inf")])
def test_a_threshold_is_a_number(threshold):
    with pytest.raises(ValueError, match="finite"):
        FilterAesthetic(threshold)


def test_the_transform_gives_records_and_rejects(local_pipeline):
    with local_pipeline() as pipeline:
        records = pipeline | beam.Create([record(i, float(i), 0.0) for i in range(4)])
        kept, rejects = records | "Both" >> FilterAesthetic(2, with_rejects=True)
        only = records | "Kept" >> FilterAesthetic(2)
        for label, elements, indexes in (("Kept", kept, [2, 3]), ("Rejects", rejects, [0, 1]), ("Only", only, [2, 3])):
            found = elements | f"{label}Index" >> beam.Map(lambda element: element.index)
            assert_that(found, equal_to(indexes), f"Check{label}")

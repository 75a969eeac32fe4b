"""Beam's faults are still there, and what is done about them helps."""

from __future__ import annotations

import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from beam_curate.beam_fixes import keep_elements_whole


class Slow:
    """Takes longer to encode than Beam's threaded workers wait before they send."""

    def __reduce__(self):
        time.sleep(1.3)
        return Slow, ()


def test_an_element_that_is_slow_to_encode_is_not_torn_apart_between_threads():
    keep_elements_whole()
    options = PipelineOptions(["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    with beam.Pipeline("FnApiRunner", options) as pipeline:
        grouped = (
            pipeline
            | beam.Create(range(3))
            | beam.Map(lambda number: (number, ("before", Slow(), "after")))
            | beam.GroupByKey()
            | beam.MapTuple(lambda number, values: (number, [(a, type(b).__name__, c) for a, b, c in values]))
        )
        assert_that(grouped, equal_to([(number, [("before", "Slow", "after")]) for number in range(3)]))

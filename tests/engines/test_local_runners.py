"""The same bytes on every local runner, with any number of workers."""

from __future__ import annotations

import logging
import re

import apache_beam as beam
import pytest
from outputs import tree

from beam_curate import metrics, options, pipeline, progress

RUNNERS = {
    "FnApiRunner, 1 worker": ["--runner=FnApiRunner", "--direct_num_workers=1"],
    "FnApiRunner, 3 threads": ["--direct_num_workers=3", "--direct_running_mode=multi_threading"],
    "FnApiRunner, 2 processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "PortableRunner": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_file_has_the_same_bytes(source, expected, curate, tmp_path, runner):
    curate(source, tmp_path, *RUNNERS[runner])
    assert tree(tmp_path) == expected


def test_on_prism_too(source, expected, curate, tmp_path, prism):
    curate(source, tmp_path, "--runner=PrismRunner", f"--prism_location={prism}")
    assert tree(tmp_path) == expected


def test_direct_runner_is_prism_where_there_is_one(source, expected, curate, tmp_path, prism):
    messages: list[str] = []
    logger = logging.getLogger("apache_beam.runners.direct.direct_runner")
    logger.addFilter(hear := lambda record: messages.append(record.getMessage()) or True)
    try:
        curate(source, tmp_path, "--runner=DirectRunner", f"--prism_location={prism}", "--verbose")
    finally:
        logger.removeFilter(hear)
    assert "Running pipeline with PrismRunner." in messages
    assert not any("falling back" in message for message in messages)
    assert tree(tmp_path) == expected


def test_direct_runner_does_without_prism_too(source, expected, curate, tmp_path):
    curate(source, tmp_path, "--runner=DirectRunner", f"--prism_location={tmp_path / 'nowhere'}")
    assert tree(tmp_path) == expected


def test_an_engine_is_asked_for_the_numbers_of_workers_that_are_elsewhere(source, tmp_path, prism, monkeypatch, capsys):
    """They leave no tallies here. Nor do those of this run, which are not told where."""
    monkeypatch.setitem(progress._SECONDS, progress.LOG, 0.1)
    monkeypatch.setattr(progress, "_SECONDS_REMOTE", 0.2)
    flags = [f"--input={source}", f"--output_dir={tmp_path / 'out'}", "--clip_model=demo", "--inference_batch_size=64"]
    chosen = options.parse([*flags, "--runner=PrismRunner", f"--prism_location={prism}"])
    root = beam.Pipeline(options=chosen)
    pipeline.build(root, chosen, pipeline.find_models(chosen))
    (tmp_path / "tallies").mkdir()
    shown = progress.Progress(progress.LOG, str(tmp_path / "tallies"))
    try:
        result = root.run()
        shown.follow(result)
        result.wait_until_finish()
    finally:
        shown.stop()
    assert not any(metrics.tallied(str(tmp_path / "tallies")).values())
    lines = re.findall(r"(\d+) of 40 tars.*; (\d+) embedded", capsys.readouterr().err)
    embedded = [int(images) for _, images in lines]
    assert embedded == sorted(embedded)
    assert any(0 < images < 2000 for images in embedded)
    # Asking on the way does not keep the last answer from being the last.
    assert metrics.totals(result.metrics())["images_embedded"] == 2000

"""The same bytes on every local runner, with any number of workers."""

from __future__ import annotations

import logging

import pytest
from outputs import tree

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

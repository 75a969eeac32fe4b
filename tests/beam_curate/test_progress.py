"""A run says how far it is, on a terminal and elsewhere, with every kind of local worker."""

from __future__ import annotations

import os
import re

import pytest
from outputs import Dataset, tree
from tars import write_dataset
from terminal import on_terminal

from beam_curate import metrics, progress
from beam_curate.progress import describe

FLAGS = (
    "--clip_model=demo",
    "--inference_batch_size=8",
    "--images_per_tar=50",
    "--aesthetic_threshold=3",
    "--noreport",
)
TARS, SAMPLES = 12, 50


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("in"), TARS, SAMPLES)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed")
    code, _ = on_terminal(["-m", "beam_curate", f"--input={source}", f"--output_dir={output}", *FLAGS])
    assert code == 0
    return tree(output)


def numbers(**some: int) -> dict[str, int]:
    names = ("tars_matched", "tars_done", "images_embedded", "images_from_store", "images_failed", "images_filtered")
    return {**dict.fromkeys((*names, "shards_planned", "shards_written"), 0), **some}


def test_each_phase_has_its_line():
    assert describe(numbers(), 3) == "starting"
    reading = numbers(
        tars_matched=10, tars_done=4, images_embedded=300, images_from_store=100, images_failed=5, images_filtered=50
    )
    assert describe(reading, 60) == (
        "4 of 10 tars, 1:30 left, 7 images/s; 300 embedded, 100 from the store, 350 kept, 55 rejected"
    )
    assert describe({**reading, "tars_done": 10}, 60).startswith("ranking; 300 embedded")
    writing = {**reading, "tars_done": 10, "shards_planned": 7, "shards_written": 2}
    assert describe(writing, 60).startswith("2 of 7 shards written; 300 embedded")
    assert describe(numbers(tars_matched=1000, tars_done=1), 100).startswith(
        "1 of 1000 tars, 27:45:00 left, 0 images/s;"
    )


WORKERS = {
    "one worker": [],
    "threads": ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
    "processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "PortableRunner": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.mark.parametrize("workers", WORKERS)
def test_a_terminal_shows_a_live_line_which_is_gone_at_the_end(source, tmp_path, workers):
    arguments = [f"--input={source}", f"--output_dir={tmp_path}", *FLAGS, *WORKERS[workers]]
    code, shown = on_terminal(["-m", "beam_curate", *arguments])
    assert code == 0, shown
    seen = re.findall(r"(\d+) of 12 tars.*?; (\d+) embedded, 0 from the store, (\d+) kept, (\d+) rejected", shown)
    assert seen, shown
    assert [int(embedded) for _, embedded, _, _ in seen] == sorted(int(embedded) for _, embedded, _, _ in seen)
    assert any(0 < int(embedded) == int(kept) + int(rejected) for _, embedded, kept, rejected in seen)
    written = Dataset(tmp_path).manifest["images"]["written"]
    assert "\n600 images embedded" in shown.replace("\r", "")
    # The line is wiped out before the summary is printed.
    assert re.search(rf"\r +\r(\r?\n)?600 images read from 12 tars, {written} kept", shown), shown[-600:]


def test_a_pipe_gets_a_plain_line_now_and_then(source, tmp_path, curate, monkeypatch, capsys):
    monkeypatch.setitem(progress._SECONDS, progress.LOG, 0.2)
    curate(source, "--inference_batch_size=8")
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert "\r" not in "".join(lines)
    assert any(re.match(r"\d+ of 12 tars.*; \d+ embedded", line) for line in lines)
    assert metrics.TALLIES not in os.environ


def test_nothing_is_said_where_nothing_is_asked_for(source, curate, monkeypatch, capsys):
    monkeypatch.setitem(progress._SECONDS, progress.LOG, 0.05)
    curate(source, "--progress=none", "--limit=2")
    assert "of 2 tars" not in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_terminal_clean(tmp_path):
    code, shown = on_terminal(
        ["-m", "beam_curate", f"--input={tmp_path}/nothing*.tar", f"--output_dir={tmp_path / 'out'}", *FLAGS]
    )
    assert code == 1
    assert (
        shown.rstrip().rpartition("\r")[2].lstrip("\n")
        == f"beam-curate: --input: nothing matches {tmp_path}/nothing*.tar"
    )


@pytest.mark.parametrize("workers", ["one worker", "threads", "PortableRunner"])
def test_ctrl_c_stops_the_run_and_the_same_command_continues(source, undisturbed, tmp_path, workers):
    arguments = ["-m", "beam_curate", f"--input={source}", f"--output_dir={tmp_path}", *FLAGS, *WORKERS[workers]]
    code, shown = on_terminal(arguments, interrupt_when=lambda text: re.search(r"[2-9] of 12 tars", text) is not None)
    assert code == 130, shown
    assert shown.rstrip().endswith("beam-curate: stopped; the same command continues from here")
    assert "Traceback" not in shown
    assert not (tmp_path / "_manifest.json").exists()
    code, shown = on_terminal(arguments)
    assert code == 0, shown
    stored = re.search(r"(\d+) images embedded, (\d+) from the embedding store", shown)
    assert int(stored[2]) >= 2 * SAMPLES
    assert tree(tmp_path) == undisturbed

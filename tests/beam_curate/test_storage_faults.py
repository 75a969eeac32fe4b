"""Storage that fails: the run fails cleanly, the next one continues, and nothing published is partial or wrong."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from outputs import Dataset, tree
from tars import write_dataset
from unsteady import PREFIX, UnsteadyFileSystem

from beam_curate import verify
from beam_curate.__main__ import main

TARS, PER_TAR = 24, 12
FLAGS = (
    "--clip_model=demo",
    "--inference_batch_size=16",
    "--images_per_tar=20",
    "--aesthetic_threshold=-100",
    "--nsfw_threshold=100",
    "--noreport",
)


@pytest.fixture
def unsteady(monkeypatch):
    monkeypatch.setattr(UnsteadyFileSystem, "calls", Counter())
    monkeypatch.setattr(UnsteadyFileSystem, "failures", 0)
    return lambda **how: [monkeypatch.setattr(UnsteadyFileSystem, name, value) for name, value in how.items()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The input, and what a run gives whose storage never fails."""
    directory = tmp_path_factory.mktemp("undisturbed")
    source = write_dataset(directory / "in", tars=TARS, samples=PER_TAR)
    assert main([f"--input={PREFIX}{source}", f"--output_dir={PREFIX}{directory / 'out'}", *FLAGS]) == 0
    return source, tree(directory / "out")


@pytest.mark.parametrize("operation", ["read", "write", "rename"])
def test_every_twentieth_operation_fails_and_the_runs_end_with_the_undisturbed_bytes(
    tmp_path, unsteady, undisturbed, operation, capsys
):
    source, expected = undisturbed
    output = tmp_path / "out"
    unsteady(failing=operation)
    failed, before = 0, {}
    while main([f"--input={PREFIX}{source}", f"--output_dir={PREFIX}{output}", *FLAGS]) != 0:
        said = capsys.readouterr().err.strip()
        assert said.startswith("beam-curate: cannot ")
        assert "unsteady" in said
        assert "Traceback" not in said
        found = tree(output)
        assert "_manifest.json" not in found
        assert {name: expected.get(name) for name in found} == found, "something partial or wrong was published"
        assert before.items() <= found.items(), "something published was lost"
        failed, before = failed + 1, found
        assert failed < 20
    # A read is tried again at once, in the same place; of the others Beam's local runner tries none again.
    assert UnsteadyFileSystem.failures >= 1
    assert failed >= 1 or operation == "read"
    assert tree(output) == expected
    unsteady(failing=None)
    assert verify.main([f"{PREFIX}{output}"]) == 0


def test_a_file_that_cannot_be_read_at_all_fails_the_run_and_is_not_taken_for_a_bad_tar(tmp_path, unsteady, capsys):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    unsteady(failing="read", every=1)
    assert main([f"--input={PREFIX}{source}", f"--output_dir={PREFIX}{tmp_path / 'out'}", *FLAGS]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"beam-curate: cannot read {PREFIX}{tmp_path / 'in' / '00000.tar'}: ")
    assert len(said.splitlines()) == 1
    assert not any(name.endswith((".parquet", ".tar")) for name in tree(tmp_path / "out"))


def test_where_storage_keeps_no_times_a_checksum_tells_a_changed_tar(tmp_path, unsteady, capsys):
    unsteady(has_times=False)
    source = write_dataset(tmp_path / "in", tars=2, samples=3)
    arguments = [f"--input={PREFIX}{source}", f"--output_dir={PREFIX}{tmp_path / 'out'}", *FLAGS]
    assert main(arguments) == 0
    assert "6 images embedded, 0 from" in capsys.readouterr().out
    assert main([*arguments, "--images_per_tar=2", "--overwrite"]) == 0
    assert "0 images embedded, 6 from" in capsys.readouterr().out
    first, second = sorted((tmp_path / "in").iterdir())
    times = os.stat(second)
    shutil.copy(first, second)  # of the same size
    os.utime(second, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(second).st_size == times.st_size
    assert main([*arguments, "--overwrite"]) == 0
    assert "3 images embedded, 3 from" in capsys.readouterr().out


def test_a_temporary_file_in_a_store_elsewhere_goes_when_its_last_run_ends(tmp_path):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    store = tmp_path / "store"
    arguments = [f"--input={source}", f"--embeddings_dir={store}", *FLAGS]
    assert main([*arguments, f"--output_dir={tmp_path / 'a'}"]) == 0
    before = tree(store)
    (fingerprint,) = store.iterdir()
    (fingerprint / "_tmp.0123456789ab.00000-x.parquet").write_bytes(b"half")
    assert main([*arguments, f"--output_dir={tmp_path / 'b'}"]) == 0
    assert tree(store) == before
    assert Dataset(tmp_path / "b").manifest == Dataset(tmp_path / "a").manifest

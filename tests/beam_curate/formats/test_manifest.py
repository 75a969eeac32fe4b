"""The manifest: the last word about a directory."""

from __future__ import annotations

import pytest
from outputs import Dataset, tree
from tars import write_dataset

from beam_curate import verify
from beam_curate.errors import CurateError
from beam_curate.formats import manifest


@pytest.fixture
def two(tmp_path, curate):
    """Two different datasets."""
    source = write_dataset(tmp_path / "in", tars=1, samples=4)
    return [curate(source, f"--images_per_tar={n}", "--embeddings_dir=none", output=tmp_path / str(n)) for n in (2, 3)]


def merge(one: Dataset, other: Dataset) -> None:
    """Puts the other's shards beside the one's, as a run does that has not finished yet."""
    for path in other.directory.glob("images-*"):
        (one.directory / path.name).write_bytes(path.read_bytes())


def test_a_run_that_finishes_after_a_different_one_is_refused_and_leaves_nothing(two):
    first, second = two
    before = tree(first.directory)
    merge(first, second)
    with pytest.raises(CurateError, match="holds another finished dataset"):
        manifest.finish(str(first.directory), second.manifest, overwrite=False)
    assert tree(first.directory) == before
    assert verify.main([str(first.directory)]) == 0


def test_with_overwrite_the_last_to_finish_stays(two):
    first, second = two
    merge(first, second)
    manifest.finish(str(first.directory), second.manifest, overwrite=True)
    assert tree(first.directory) == tree(second.directory)


def test_finishing_twice_changes_nothing(two):
    first, _ = two
    before = (first.directory / "_manifest.json").stat().st_mtime_ns
    manifest.finish(str(first.directory), first.manifest, overwrite=False)
    assert (first.directory / "_manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["no json", "[]", '{"format_version": 99}'])
def test_what_is_no_manifest_of_ours_is_named(tmp_path, text):
    (tmp_path / "_manifest.json").write_text(text)
    with pytest.raises(CurateError, match=r"_manifest\.json is not"):
        manifest.read(str(tmp_path))

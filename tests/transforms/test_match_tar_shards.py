"""Which tars are read, and in what order."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from tars import write_tar

from beam_curate.errors import CurateError
from transforms.match_tar_shards import MatchTarShards, match_tars


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.tar", "a/1.tar", "a/0.tar", "a/3.tar.gz", "a/notes.txt"):
        write_tar(tmp_path / name, [("k.jpg", b"image")])
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "limit", "names"),
    [
        (["{}/a/*.tar"], None, ["a/0.tar", "a/1.tar"]),
        (["{}/a"], None, ["a/0.tar", "a/1.tar"]),
        (["{}/a/"], None, ["a/0.tar", "a/1.tar"]),
        (["{}/b/2.tar", "{}/a/*"], 2, ["a/0.tar", "a/1.tar"]),
        (["{}/b", "{}/a/*.tar.gz", "{}/*/2.tar"], None, ["a/3.tar.gz", "b/2.tar"]),
    ],
)
def test_globs_directories_and_paths_in_one_sorted_list(folder, patterns, limit, names):
    tars = match_tars([pattern.format(folder) for pattern in patterns], limit)
    assert [tar.uri for tar in tars] == [f"{folder}/{name}" for name in names]
    assert all(tar.size == (folder / name).stat().st_size for tar, name in zip(tars, names, strict=True))
    assert all(tar.modified == (folder / name).stat().st_mtime for tar, name in zip(tars, names, strict=True))


@pytest.mark.parametrize("pattern", ["{}/a/*.zip", "{}/c", "{}/a/9.tar"])
def test_a_pattern_that_matches_nothing_is_named(folder, pattern):
    with pytest.raises(CurateError) as error:
        match_tars([f"{folder}/b", pattern.format(folder)])
    hint = "" if "*" in pattern else "; a directory stands for the .tar files in it"
    assert str(error.value) == f"--input: nothing matches {pattern.format(folder)}{hint}"


def test_an_empty_directory_matches_nothing(tmp_path):
    with pytest.raises(CurateError, match="nothing matches"):
        match_tars([str(tmp_path)])


def test_the_transform_takes_a_comma_list(folder, local_pipeline):
    with local_pipeline() as pipeline:
        tars = pipeline | MatchTarShards(f"{folder}/a, {folder}/b", limit=2)
        uris = tars | "Uris" >> beam.Map(lambda tar: tar.uri)
        assert_that(uris, equal_to([f"{folder}/a/0.tar", f"{folder}/a/1.tar"]))


@pytest.mark.parametrize(("patterns", "limit"), [("", None), (" , ", None), ("a", 0)])
def test_wrong_arguments_are_refused(patterns, limit):
    with pytest.raises(ValueError, match=r"no input pattern|limit must be at least 1"):
        MatchTarShards(patterns, limit)

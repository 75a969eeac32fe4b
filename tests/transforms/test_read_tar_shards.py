"""The entries of a tar: every sample, or why it is none, and the end."""

from __future__ import annotations

import os

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to
from tars import image_bytes, sample_members, write_tar

from beam_curate.records import Rejection, Sample, SourceTar, TarEnd
from transforms import MatchTarShards, ReadTarShards
from transforms.read_tar_shards import read_entries


def source(path: str) -> SourceTar:
    return SourceTar(path, os.path.getsize(path), os.path.getmtime(path))


def reasons(entries):
    return [(entry.index, entry.key, entry.reason) for entry in entries if isinstance(entry, Rejection)]


def test_entries_are_numbered_in_order_and_the_end_counts_them(tmp_path):
    members = [*sample_members("a"), ("b.txt", b"no image"), *sample_members("c", 2)]
    path = write_tar(tmp_path / "x.tar", members)
    entries = list(read_entries(source(path)))
    assert [type(entry) for entry in entries] == [Sample, Rejection, Sample, TarEnd]
    assert [entry.index for entry in entries[:3]] == [0, 1, 2]
    assert (entries[2].key, entries[2].member, entries[2].image) == ("c", "c.jpg", image_bytes(2))
    assert entries[3] == TarEnd(source(path), 3)
    assert reasons(entries) == [(1, "b", "no_image")]
    assert "b.txt" in entries[1].detail


def test_members_that_are_not_adjacent_are_a_split_sample(tmp_path):
    members = [("a.jpg", b"i"), ("b.jpg", b"j"), ("a.txt", b"late"), ("b.json", b"{}")]
    entries = list(read_entries(source(write_tar(tmp_path / "x.tar", members))))
    assert reasons(entries) == [(2, "a", "split_sample"), (3, "b", "split_sample")]
    assert "a.txt" in entries[2].detail


def test_a_cut_tar_gives_its_samples_and_one_row_about_itself(tmp_path):
    path = write_tar(tmp_path / "x.tar", [*sample_members("a"), ("b.jpg", bytes(20_000)), ("b.txt", b"")])
    with open(path, "r+b") as file:
        file.truncate(15_000)
    sample, row, end = read_entries(source(path))
    assert (sample.key, sample.image) == ("a", image_bytes(0))
    assert (row.reason, row.index, row.key) == ("truncated_tar", None, None)
    assert "byte 15000" in row.detail
    assert end.images == 1


def test_what_cannot_be_opened_or_is_no_tar_is_unreadable(tmp_path):
    missing = SourceTar(str(tmp_path / "gone.tar"), 0, 0.0)
    (tmp_path / "text.tar").write_bytes(b"hello" * 1000)
    for tar, says in ((missing, "cannot read"), (source(str(tmp_path / "text.tar")), "not a tar")):
        row, end = read_entries(tar)
        assert (row.reason, row.index, row.source) == ("unreadable_tar", None, tar.uri)
        assert says in row.detail
        assert end.images == 0


def test_the_transform_reads_every_tar(tmp_path, local_pipeline):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", sample_members(f"{name}0") + sample_members(f"{name}1", 1))
    with local_pipeline() as pipeline:
        entries = pipeline | MatchTarShards(str(tmp_path)) | ReadTarShards()
        keys = entries | beam.Filter(lambda entry: isinstance(entry, Sample)) | beam.Map(lambda entry: entry.key)
        assert_that(keys, equal_to(["a0", "a1", "b0", "b1"]))

"""Tars: what is read, where it lies, and what is written."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile

import pytest
import webdataset
from tars import image_bytes, read_members, sample_members, write_tar

from beam_curate.formats.files import open_tar
from beam_curate.formats.tar import (
    TarError,
    TarReader,
    TarShardWriter,
    copy_sample,
    iter_samples,
    member_name,
    safe_key,
)


def samples_of(path):
    with open_tar(str(path)) as file:
        return list(iter_samples(file))


def keys_of(members, tmp_path):
    return [sample.key for sample in samples_of(write_tar(tmp_path / "a.tar", members))]


def test_adjacent_members_with_one_key_are_a_sample(tmp_path):
    members = sample_members("a/one") + sample_members("a/two", seed=1)
    first, second = samples_of(write_tar(tmp_path / "a.tar", members))
    assert (first.key, second.key) == ("a/one", "a/two")
    assert first.names == ("a/one.jpg", "a/one.json", "a/one.txt")
    assert first.image == image_bytes(0)
    assert second.image == image_bytes(1)
    assert first.image_member == "a/one.jpg"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path, format):
    names = ["a.jpg", "a.txt", "b.v2.jpg", "dir.x/c.JPEG", "dir.x/c.seg.png", "d.jpg", "é.png", "é.txt"]
    if format != tarfile.USTAR_FORMAT:
        names += [f"{'long/' * 40}{'n' * 150}.jpg", f"{'long/' * 40}{'n' * 150}.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], format=format)
    expected = [
        (sample["__key__"], sorted(extension for extension in sample if not extension.startswith("__")))
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    ]
    found = [
        (sample.key, sorted(name[len(sample.key) + 1 :].lower() for name in sample.names))
        for sample in samples_of(path)
    ]
    assert found == expected


def test_the_image_is_the_first_member_with_an_image_extension(tmp_path):
    members = [("a.txt", b"t"), ("a.v2.PNG", b"png"), ("a.jpg", b"jpg")]
    (sample,) = samples_of(write_tar(tmp_path / "a.tar", members))
    assert (sample.image_member, sample.image) == ("a.v2.PNG", b"png")


def test_an_extension_that_comes_again_begins_another_sample(tmp_path):
    assert keys_of([("a.jpg", b"1"), ("a.txt", b"2"), ("a.jpg", b"3"), ("a.TXT", b"4")], tmp_path) == ["a", "a"]


def test_a_sample_lies_where_its_span_says(tmp_path):
    long_name = "k" * 150
    path = write_tar(tmp_path / "a.tar", sample_members("a") + sample_members(long_name, 7) + sample_members("z", 8))
    _, middle, _ = samples_of(path)
    data = (tmp_path / "a.tar").read_bytes()[middle.offset : middle.offset + middle.size]
    end = b"\0" * 1024
    (alone,) = list(iter_samples(io.BytesIO(data + end)))
    assert (alone.key, alone.image, alone.digest) == (long_name, image_bytes(7), middle.digest)


def test_the_digest_depends_on_every_member_and_name(tmp_path):
    def digest(members):
        return samples_of(write_tar(tmp_path / "a.tar", members))[0].digest

    base = digest([("a.jpg", b"image"), ("a.txt", b"text")])
    assert base == digest([("a.jpg", b"image"), ("a.txt", b"text")])
    assert base != digest([("a.jpg", b"image"), ("a.txt", b"tex")])
    assert base != digest([("a.jpg", b"image"), ("a.cap", b"text")])
    assert base != digest([("a.jpg", b"image")])


def test_gzip_is_read_like_plain_tar(tmp_path):
    plain = write_tar(tmp_path / "a.tar", sample_members("a") + sample_members("b", 1))
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert samples_of(tmp_path / "a.tgz") == samples_of(plain)


@pytest.mark.parametrize(
    ("cut", "says", "keys"),
    [
        (700, "cut inside a member's data", []),
        (2048 + 100, "cut inside a header", ["a"]),
        (2048 + 512 + 10, "cut inside a member's data", ["a"]),
        (2048, "no end-of-archive blocks", ["a"]),
        (4096, "no end-of-archive blocks", ["a", "b"]),
    ],
)
def test_a_cut_tar_gives_what_is_whole_and_says_so(tmp_path, cut, says, keys):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"i" * 600), ("a.txt", b""), ("b.jpg", b"j" * 600), ("b.txt", b"")])
    file = io.BytesIO((tmp_path / "a.tar").read_bytes()[:cut])
    found = []
    with pytest.raises(TarError, match=says):
        for sample in iter_samples(file):
            found.append(sample.key)
    assert found == keys


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html>" * 1000, b"\xff" * 4096])
def test_what_is_no_tar_is_unreadable_from_the_start(data):
    with pytest.raises(TarError) as error:
        list(TarReader(io.BytesIO(data)))
    assert error.value.at_start


@pytest.mark.parametrize(
    ("key", "safe"),
    [
        ("a/b", "a/b"),
        ("/etc/passwd", "etc/passwd"),
        ("../../x", "x"),
        ("a/./b/../c", "a/b/c"),
        ("..", "_"),
        ("a\\b\nc\x00d", "a_b_c_d"),
        ("日本", "日本"),
    ],
)
def test_a_safe_key_stays_inside(key, safe):
    assert safe_key(key, [f"{key}.jpg"]) == safe


def test_long_keys_are_shortened_to_fit_ustar_and_stay_different():
    keys = [f"{'d' * 200}/{'n' * 300}{i}" for i in range(2)]
    safe = [safe_key(key, [f"{key}.jpg", f"{key}.json"]) for key in keys]
    assert safe[0] != safe[1]
    for name in (member_name(f"{key}-12345678", "x.json") for key in safe):
        info = tarfile.TarInfo(name)
        assert info.tobuf(tarfile.USTAR_FORMAT)


def test_the_writer_gives_the_bytes_of_webdatasets_tar_writer(tmp_path):
    sample = {"__key__": "a/b", "jpg": image_bytes(3), "json": b"{}", "txt": b"caption"}
    with open(tmp_path / "theirs.tar", "wb") as file, webdataset.TarWriter(file, mtime=0, encoder=False) as writer:
        writer.write(sample)
    with open(tmp_path / "ours.tar", "wb") as file:
        writer = TarShardWriter(file)
        for extension in ("jpg", "json", "txt"):
            writer.add(f"a/b.{extension}", len(sample[extension]), [sample[extension]])
        writer.close()
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "é" * 48 + ".jpg", "x" * 96 + ".jpg", "d/" + "x" * 96 + ".jpg"])
@pytest.mark.parametrize("size", [0, 7, 8**11 - 1])
def test_a_member_has_the_header_that_tarfile_gives_it(name, size):
    written = io.BytesIO()
    with contextlib.suppress(TarError):  # of the payload, which does not come
        TarShardWriter(written).add(name, size, [])
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname, member.gname = size, 0o444, "bigdata", "bigdata"
    assert written.getvalue() == member.tobuf(tarfile.USTAR_FORMAT)


def test_a_copied_sample_has_its_members_in_order_and_its_digest(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [*sample_members("a"), ("b.txt", b"text"), ("b.jpg", b"image"), ("b.cls", b"")]
    )
    sample = samples_of(path)[1]
    with open(path, "rb") as source, open(tmp_path / "copy.tar", "wb") as target:
        writer = TarShardWriter(target)
        source.seek(sample.offset)
        digest, kept = copy_sample(
            source,
            sample.offset,
            sample.size,
            lambda name: member_name("new", name),
            writer,
            lambda name: name == "b.txt",
        )
        writer.close()
    assert digest == sample.digest
    assert kept == {"b.txt": b"text"}
    assert read_members(tmp_path / "copy.tar") == [("new.txt", b"text"), ("new.jpg", b"image"), ("new.cls", b"")]

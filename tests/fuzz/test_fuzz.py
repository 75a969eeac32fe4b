"""Random input: properties that hold for any tar, and the fuzzer's past and new findings."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outputs import Dataset
from tars import image_bytes

from beam_curate import verify
from beam_curate.__main__ import main
from beam_curate.records import Rejection, Sample, SourceTar, TarEnd
from transforms.read_tar_shards import read_entries

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("fuzz", HERE / "fuzz.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

IMAGES = [data for data, _ in hostile.images().values() if len(data) < 5000][:20] + [
    image_bytes(seed) for seed in range(5)
]
KEYS = st.sampled_from(["a", "b", "a/b", "../c", "/d", "e e", "f" * 120, "é", "g\nh", "CON", ""]) | st.text(max_size=12)
EXTENSIONS = st.sampled_from(["jpg", "JPG", "v2.png", "json", "txt", "cls", "tar", "", "x" * 80])
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 12 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S"]
)
DATA = st.sampled_from([*IMAGES, b"", b"text", b"[1]", b"{}", b"\xff\xfe"]) | st.binary(max_size=600)
MEMBERS = st.lists(st.tuples(KEYS, EXTENSIONS, KINDS, DATA), max_size=12)


@st.composite
def tar_files(draw) -> bytes:
    """A tar out of these pieces, whole or cut somewhere, perhaps with something behind it."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    ) as tar:
        for key, extension, kind, data in draw(MEMBERS):
            info = tarfile.TarInfo(f"{key}.{extension}".replace("\0", ""))
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    data = buffer.getvalue()
    ending = draw(st.sampled_from(["whole"] * 3 + ["cut", "garbage"]))
    if ending == "cut":
        return data[: draw(st.integers(0, len(data)))]
    return data + draw(st.binary(max_size=600)) if ending == "garbage" else data


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tar_files())
def test_any_tar_is_read_to_its_end_and_numbered_without_gaps(tmp_path_factory, data):
    fuzz.check_tar(data)
    path = tmp_path_factory.mktemp("any") / "any.tar"
    path.write_bytes(data)
    tar = SourceTar(str(path), len(data), 0.0)
    *entries, end = read_entries(tar)
    assert end == TarEnd(tar, sum(entry.index is not None for entry in entries))
    assert [entry.index for entry in entries if entry.index is not None] == list(range(end.images))
    assert all(isinstance(entry, (Sample, Rejection)) for entry in entries)
    assert sum(entry.index is None for entry in entries) <= 1
    path.unlink()


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(tar_files(), min_size=1, max_size=4))
def test_whatever_comes_in_adds_up(tmp_path_factory, datas):
    root = tmp_path_factory.mktemp("adds-up")
    (root / "in").mkdir()
    for i, data in enumerate(datas):
        (root / "in" / f"{i}.tar").write_bytes(data)
    flags = ("--clip_model=demo", "--inference_batch_size=8", "--images_per_tar=3", "--noreport")
    assert main([f"--input={root}/in", f"--output_dir={root}/out", *flags]) == 0
    dataset = Dataset(root / "out")
    images = dataset.manifest["images"]
    assert images["read"] == len(dataset.rows) + sum(row["index"] is not None for row in dataset.rejects)
    assert dataset.manifest["tars"]["read"] == len(datas)
    assert list(verify.faults(str(dataset.directory))) == []


@pytest.mark.parametrize(
    "path", sorted((HERE / "corpus").glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_past_findings_stay_mended(path):
    fuzz.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="atheris has no wheel for Python 3.10")
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_short_run_of_the_fuzzer_finds_nothing(target, tmp_path):
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    pieces = hostile.tars() if target == "tar" else hostile.images()
    for name, (data, *_) in pieces.items():
        if len(data) < 30_000:
            (seeds / name).write_bytes(data)
    flags = [
        "-max_total_time=15",
        "-timeout=20",
        "-rss_limit_mb=4000",
        f"-artifact_prefix={tmp_path}/",
        "-print_final_stats=1",
    ]
    corpora = [str(seeds), str(HERE / "corpus" / target)]
    ran = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), target, *flags, *corpora], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stderr.rpartition("stat::number_of_executed_units:")[2].split()[0]) > 500

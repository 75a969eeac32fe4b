"""No input stops a run, leaks a file from outside, or vanishes without a row that says why."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from outputs import Dataset, tree
from PIL import Image
from safetensors.torch import load_file, save_file
from tars import image_bytes, read_members, sample_members, write_dataset, write_tar

from beam_curate import metrics, verify
from beam_curate.__main__ import main
from beam_curate.models.clip import ClipModelHandler
from beam_curate.models.preprocess import ImageError, read_header
from beam_curate.records import ImageRecord, Rejection, Sample

FLAGS = (
    "--clip_model=demo",
    "--inference_batch_size=16",
    "--aesthetic_threshold=-100",
    "--nsfw_threshold=100",
    "--noreport",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    for name, (data, *_) in hostile.tars().items():
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture(scope="module")
def ran(source, tmp_path_factory) -> tuple[Dataset, dict[str, int]]:
    """The dataset made of all of it, and what Beam's metrics counted."""
    output = tmp_path_factory.mktemp("out")
    counted: dict[str, int] = {}
    patch = pytest.MonkeyPatch()
    totals = metrics.totals

    def remember(results):
        counted.update(totals(results))
        return counted

    patch.setattr(metrics, "totals", remember)
    assert main([f"--input={source}/*", f"--output_dir={output}", "--images_per_tar=20", *FLAGS]) == 0
    patch.undo()
    return Dataset(output), counted


def test_every_tar_is_accounted_for(ran):
    dataset, _ = ran
    tars = hostile.tars()
    undecodable = Counter(reason for _, reason in hostile.images().values() if reason)
    expected: Counter = undecodable + Counter()
    for _, _, reasons, _ in tars.values():
        expected.update(reasons)
    read = sum(images for _, images, _, _ in tars.values())
    assert dataset.manifest["images"]["rejected"] == dict(expected)
    assert dataset.manifest["images"]["read"] == read
    assert dataset.manifest["images"]["written"] == read - sum(expected.values())
    assert dataset.manifest["tars"] == {"read": len(tars), "rejected": sum(bad for *_, bad in tars.values())}
    assert verify.main([str(dataset.directory)]) == 0


def test_manifest_rejects_and_metrics_give_the_same_numbers(ran):
    dataset, counted = ran
    images, tars = dataset.manifest["images"], dataset.manifest["tars"]
    rows = Counter(row["reason"] for row in dataset.rejects if row["index"] is not None)
    assert dict(rows) == images["rejected"]
    assert {reason: counted[metrics.rejected(reason)] for reason in rows} == dict(rows)
    assert counted[metrics.IMAGES_READ] == images["read"]
    assert counted[metrics.IMAGES_WRITTEN] == images["written"] == len(dataset.rows)
    assert counted[metrics.TARS_READ] == tars["read"]
    assert counted[metrics.TARS_REJECTED] == tars["rejected"]
    assert counted[metrics.SHARDS_WRITTEN] == len(dataset.tars)


def test_reject_rows_are_in_order_and_say_what_to_do(ran):
    dataset, _ = ran
    rows = dataset.rejects
    order = [(row["source"], row["index"] is None, row["index"] or 0) for row in rows]
    assert order == sorted(order)
    for row in rows:
        assert row["stage"] in ("read", "embed")
        assert row["detail"]
        assert (row["key"] is None) == (row["index"] is None) == (row["reason"] in ("unreadable_tar", "truncated_tar"))


@pytest.mark.parametrize("name", hostile.images())
def test_every_image_is_kept_or_says_why_not(ran, name):
    dataset, _ = ran
    data, reason = hostile.images()[name]
    key = name.partition(".")[0]
    rows = [row for row in dataset.rows if row["original_path"].endswith(f"16_images.tar/{name}")]
    rejects = [row for row in dataset.rejects if row["source"].endswith("16_images.tar") and row["key"] == key]
    if reason is None:
        assert rejects == []
        assert rows[0]["sha256"] == hashlib.sha256(data).hexdigest()
        assert np.isfinite(rows[0]["embedding"]).all()
    else:
        assert rows == []
        assert [row["reason"] for row in rejects] == [reason]
        assert rejects[0]["detail"].startswith(name)


@pytest.mark.parametrize("format", ["animated_gif.gif", "animated_webp.webp", "animated_png.png", "many_pages.tiff"])
def test_of_several_frames_the_first_counts(format, decoder):
    first = image_bytes(1, format="PNG")
    handler = ClipModelHandler("demo", batch_size=2, decoder=decoder)
    batch = [Sample("", i, "", "", "", 0, 0, b"", data) for i, data in enumerate((hostile.images()[format][0], first))]
    records = handler.run_inference(batch, handler.load_model())
    one, other = (record.vector.astype(np.float64) for record in records)
    assert one @ other > 0.99


@pytest.mark.parametrize("name", ["sixteen_bit.png", "sixteen_bit_tiff.tiff"])
def test_sixteen_bits_are_scaled_not_clipped(name, decoder):
    from beam_curate.models.preprocess import Preprocess, make_preprocessor

    data = hostile.images()[name][0]
    handler = ClipModelHandler("demo")
    preprocess = Preprocess.from_open_clip(handler.checkpoint.preprocess)
    out = np.zeros((1, *preprocess.size, 3), np.uint8)
    make_preprocessor(preprocess, decoder, 1, "cpu")([(data, read_header(data, 10**8))], out)
    assert out.min() < 30
    assert out.max() > 225
    assert 100 < out.mean() < 155


def test_names_and_texts_of_odd_samples(ran):
    dataset, _ = ran
    rows = {row["original_key"]: row for row in dataset.rows if "15_samples" in row["original_path"]}
    assert len([row for row in dataset.rows if "15_samples" in row["original_path"]]) == 20
    assert rows["two"]["member_name"] == "two.jpg"
    assert rows["dotted"]["member_name"] == "dotted.v2.final.jpg"
    assert rows["SHOUT"]["caption"] == "SHOUT"
    assert rows["dir/sub dir/with spaces"]["image_id"] == "dir/sub dir/with spaces"
    assert rows["日本語"]["image_id"] == "日本語"
    assert rows["CON"]["image_id"] == "CON"
    assert rows["line\nfeed"]["image_id"] == "line_feed"
    assert rows["latin"]["caption"] == "caf\ufffd %s {0} <b>"
    assert rows["notjson"]["metadata"] is None
    assert rows["list"]["metadata"] == "[1, 2, 3]"
    assert (rows["nan"]["caption"], rows["nan"]["metadata"]) == ("from json", None)
    assert rows["huge"]["caption"] == "big"
    assert rows["huge"]["metadata"].encode() == hostile.big_json(3 << 20)
    twice = [row["image_id"] for row in dataset.rows if row["original_key"] == "twice"]
    assert twice[0] == "twice"
    assert re.fullmatch(r"twice-[0-9a-f]{8}", twice[1])
    assert len({row["image_id"] for row in dataset.rows}) == len(dataset.rows)


def test_nothing_is_read_or_written_outside(ran, tmp_path):
    dataset, _ = ran
    assert not os.path.exists("/tmp/beam-curate-escaped.jpg")
    assert not os.path.exists("/tmp/beam-curate-absolute.jpg")
    hostname = Path("/etc/passwd").read_bytes()
    for tar in dataset.tars:
        with tarfile.open(tar) as archive:
            for info in archive:
                assert info.isreg()
                assert not info.name.startswith("/")
                assert ".." not in info.name.split("/")
                assert not re.search(r"[\x00-\x1f\x7f\\]", info.name)
                assert len(info.name.encode()) <= 256
        assert all(data != hostname for _, data in read_members(tar))
    special = [row for row in dataset.rejects if "09_special" in row["source"]]
    assert [row["key"] for row in special] == ["passwd", "climb", "hard", "device", "pipe", "inner"]
    assert "symbolic link" in special[0]["detail"]


def test_other_readers_read_what_was_written(ran):
    import webdataset

    dataset, _ = ran
    samples = list(webdataset.WebDataset([str(tar) for tar in dataset.tars], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row["image_id"] for row in dataset.rows]


def test_the_same_bytes_again(ran, source, tmp_path):
    dataset, _ = ran
    assert main([f"--input={source}/*", f"--output_dir={tmp_path}", "--images_per_tar=20", *FLAGS]) == 0
    assert tree(tmp_path) == tree(dataset.directory)


def test_100000_empty_members(tmp_path, curate):
    path = write_tar(tmp_path / "in.tar", ((f"{i}.jpg", b"") for i in range(100_000)), format=tarfile.USTAR_FORMAT)
    output = curate(path)
    assert output.manifest["images"] == {"read": 100_000, "written": 0, "rejected": {"undecodable": 100_000}}


def test_one_bad_image_among_256_changes_no_other_embedding(decoder):
    good = [image_bytes(seed) for seed in range(255)]
    handler = ClipModelHandler("demo", batch_size=256, decoder=decoder)
    model = handler.load_model()

    def embeddings(images):
        results = handler.run_inference(
            [Sample("", i, "", "", "x", 0, 0, b"", data) for i, data in enumerate(images)], model
        )
        return [result.embedding for result in results if isinstance(result, ImageRecord)]

    alone = embeddings(good)
    assert len(alone) == 255
    for bad in (image_bytes(999)[:-300], b"<html>", hostile.png_header(4000, 4000)):
        assert embeddings([*good[:100], bad, *good[100:]]) == alone


def test_strict_names_the_first_failures_and_no_control_characters(source, tmp_path, capsys):
    assert main([f"--input={source}/*", f"--output_dir={tmp_path}", "--strict", *FLAGS]) == 1
    said = capsys.readouterr().err
    assert "--strict: " in said
    assert "00_empty_file.tar: unreadable_tar: the file is empty" in said
    assert Dataset(tmp_path).manifest["tars"]["rejected"] > 0
    bad = write_tar(tmp_path / "in" / "x.tar", [("a\x1b[2J.jpg", b"broken")])
    assert main([f"--input={bad}", f"--output_dir={tmp_path / 'other'}", "--strict", *FLAGS]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "a\ufffd[2J.jpg" in said


class TestModel:
    """What a model can do wrong."""

    def checkpoint(self, path: Path, change) -> ClipModelHandler:
        handler = ClipModelHandler("demo", batch_size=4)
        tensors = load_file(handler.checkpoint.locate())
        save_file({name: change(name, tensor) for name, tensor in tensors.items()}, path)
        handler.checkpoint = type(handler.checkpoint)(
            "demo", str(path), handler.checkpoint.config, handler.checkpoint.preprocess
        )
        return handler

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_embeddings_that_are_not_finite_are_rejected(self, tmp_path, value):
        handler = self.checkpoint(
            tmp_path / "nan.safetensors",
            lambda name, tensor: torch.full_like(tensor, value) if "proj" in name else tensor,
        )
        batch = [Sample("a.tar", i, "k", "k", "k.jpg", 0, 0, b"", image_bytes(i)) for i in range(3)]
        results = handler.run_inference(batch, handler.load_model())
        assert [result.reason for result in results if isinstance(result, Rejection)] == ["model_error"] * 3
        assert results[0].detail == "k.jpg: the embedding is not finite"
        assert (results[0].width, results[0].height) == (64, 48)

    def test_a_batch_that_does_not_fit_into_memory_is_halved(self, b32_checkpoint):
        """In a process of its own whose address space is limited, as PyTorch's allocator on a CPU knows no other end."""
        script = """
import json, resource, sys
import numpy as np
from beam_curate.models.clip import ClipModelHandler
handler = ClipModelHandler("ViT-B-32", sys.argv[1], device="cpu", batch_size=384, decoder="pillow")
model = handler.load_model()
pixels = np.random.default_rng(0).integers(0, 256, (384, 224, 224, 3), dtype=np.uint8)
model._load()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), hard))
embeddings = model.embed(pixels)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
small = ClipModelHandler("ViT-B-32", sys.argv[1], device="cpu", batch_size=64, decoder="pillow").load_model().embed(pixels[320:])
cosine = (embeddings[320:].astype(float) * small.astype(float)).sum(1).min()
print(json.dumps([embeddings.shape, model._rows, cosine]))
"""
        ran = subprocess.run(
            [sys.executable, "-c", script, b32_checkpoint],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
        assert ran.returncode == 0, ran.stderr
        shape, rows, cosine = json.loads(ran.stdout.splitlines()[-1])
        assert shape == [384, 512]
        assert 1 <= rows < 384
        assert cosine > 0.9999
        assert f"from now on {rows} images are embedded at a time (--inference_batch_size)" in ran.stderr

    def test_a_head_file_with_unknown_tensors_is_refused(self, tmp_path, capsys):
        save_file({"surprise": torch.ones(3)}, tmp_path / "head.safetensors")
        arguments = ["--input=x", f"--output_dir={tmp_path}/out", "--clip_model=demo"]
        assert main([*arguments, f"--nsfw_head={tmp_path}/head.safetensors"]) == 2
        said = capsys.readouterr().err
        assert "--nsfw_head" in said
        assert "head.safetensors is not a score head" in said


class TestDestination:
    """What can stand in the way of the output."""

    def test_a_disk_that_is_full_fails_cleanly_and_the_next_run_finishes(self, tmp_path):
        source = write_dataset(tmp_path / "in", tars=1, samples=60)
        arguments = ["-m", "beam_curate", f"--input={source}", f"--output_dir={tmp_path}/out", *FLAGS]
        script = (
            "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
            "sys.argv = sys.argv[2:]; sys.argv[0] = 'beam_curate'; runpy.run_module('beam_curate', run_name='__main__')"
        )
        ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert ran.returncode == 1
        assert re.fullmatch(r"beam-curate: cannot write \S+/out/images-\S+\.tar: .*File too large\n", ran.stderr)
        left = tree(tmp_path / "out")
        assert all(name.startswith("_embeddings/") for name in left)
        assert main([f"--input={source}", f"--output_dir={tmp_path}/out", *FLAGS]) == 0
        assert verify.main([f"{tmp_path}/out"]) == 0

    @pytest.mark.parametrize("place", ["/proc/beam-curate", "{}/file/out"])
    def test_a_place_that_cannot_be_written_is_named(self, tmp_path, place, capsys):
        source = write_dataset(tmp_path / "in", tars=1, samples=1)
        (tmp_path / "file").write_text("not a directory")
        output = place.format(tmp_path)
        assert main([f"--input={source}", f"--output_dir={output}", *FLAGS]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"beam-curate: --output_dir: cannot make {output}")
        assert said.count("\n") == 1

    def test_a_directory_with_other_files_is_refused_and_left_alone(self, tmp_path, capsys):
        source = write_dataset(tmp_path / "in", tars=1, samples=1)
        before = tree(tmp_path / "in")
        assert main([f"--input={source}", f"--output_dir={tmp_path}/in", *FLAGS]) == 2
        assert "holds files that are not a dataset's (00000.tar)" in capsys.readouterr().err
        assert tree(tmp_path / "in") == before

    def test_what_an_interrupted_run_has_left_is_cleared_away(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=4)
        output = tmp_path / "output"
        (output / "_rejects").mkdir(parents=True)
        for name in (
            "images-0123456789ab-000007.tar",
            "images-0123456789ab-000007.parquet",
            "_tmp.0123456789ab.images-0123456789ab-000008.tar",
            "_rejects/rejects-0123456789ab-000000.parquet",
            "_rejects/_tmp.0123456789ab.rejects-0123456789ab-000001.parquet",
        ):
            (output / name).write_bytes(b"left")
        dataset = curate(source)
        assert verify.main([str(dataset.directory)]) == 0

    def test_of_two_runs_at_the_same_time_the_second_refuses(self, tmp_path):
        from beam_curate import destination

        source = write_dataset(tmp_path / "in", tars=1, samples=1)
        arguments = [sys.executable, "-m", "beam_curate", f"--input={source}", f"--output_dir={tmp_path}/out", *FLAGS]
        with destination.claimed(f"{tmp_path}/out"):
            ran = subprocess.run(arguments, capture_output=True, text=True)
        assert ran.returncode == 1
        assert ran.stderr == f"beam-curate: --output_dir: another run is writing into {tmp_path}/out\n"
        assert subprocess.run(arguments, capture_output=True).returncode == 0


def peak_memory(source: str, output: Path) -> int:
    """Peak resident memory, in bytes, of a whole run in a process of its own."""
    arguments = [sys.executable, "-m", "beam_curate", f"--input={source}", f"--output_dir={output}", *FLAGS]
    script = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=2).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout) * 1024


def test_hostile_input_takes_no_more_than_300_mb_beside_clean_photographs(source, shared, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(source, more)
    write_tar(more / "90.tar", [("large.jpg", image_bytes(60)), ("large.json", hostile.big_json(50 << 20))])
    write_tar(more / "91.tar", [("noise.jpg", bytes(120 << 20)), ("too_large.png", bytes(200 << 20))])
    clean = peak_memory(f"{shared}/photos", tmp_path / "clean")
    dirty = peak_memory(f"{more}/*", tmp_path / "dirty")
    shutil.rmtree(more)
    assert dirty - clean < 300 << 20


def test_pillows_own_limit_does_not_stand_in_the_way():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 9_500)).save(buffer, "PNG")
    with pytest.raises(ImageError) as error:
        read_header(buffer.getvalue(), 10**8)
    assert error.value.reason == "too_many_pixels"
    ClipModelHandler("demo", max_image_pixels=200_000_000).load_model()
    assert read_header(buffer.getvalue(), 200_000_000).pixels == 190_000_000


@pytest.mark.parametrize("how", ["changes", "disappears"])
def test_a_tar_that_is_not_there_any_more_when_it_is_copied_fails_the_run_which_publishes_nothing(
    tmp_path, capsys, how
):
    source = write_dataset(tmp_path / "in", tars=3, samples=20)
    write_tar(tmp_path / "in" / "z.tar", [member for i in range(400) for member in sample_members(f"z{i}", seed=i)])
    victim, output = tmp_path / "in" / "00001.tar", tmp_path / "out"

    def spoil():
        while not list(output.glob("_embeddings/*/00001*.parquet")):
            time.sleep(0.001)
        if how == "changes":
            victim.write_bytes((tmp_path / "in" / "00002.tar").read_bytes())
        else:
            victim.unlink()

    spoiler = threading.Thread(target=spoil, daemon=True)
    spoiler.start()
    assert main([f"--input={source}", f"--output_dir={output}", "--images_per_tar=4", *FLAGS]) == 1
    spoiler.join()
    said = capsys.readouterr().err
    assert said.startswith(f"beam-curate: {victim} has changed since it was read")
    assert len(said.splitlines()) == 1
    assert all(name.startswith("_embeddings/") for name in tree(output))

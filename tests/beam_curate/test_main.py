"""The command line, end to end on the demo model: what it writes, says and returns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from outputs import tree
from tars import image_bytes, sample_members, write_dataset, write_tar

from beam_curate import verify
from beam_curate.__main__ import main


def test_every_image_is_in_the_output_or_in_the_rejects(tmp_path, curate, capsys):
    write_dataset(tmp_path / "in", tars=2, samples=5)
    write_tar(
        tmp_path / "in" / "00002.tar",
        [
            *sample_members("good", 50),
            ("broken.jpg", image_bytes(51)[:-100]),
            ("page.png", b"<html>"),
            ("text.txt", b"only text"),
            ("big.jpg", image_bytes(52, size=(300, 200))),
            ("good.cls", b"late"),
        ],
    )
    (tmp_path / "in" / "00003.tar").write_bytes(b"no tar" * 100)
    output = curate(str(tmp_path / "in"), "--max_image_pixels=50000", "--images_per_tar=4")
    expected = {"undecodable": 2, "no_image": 1, "too_many_pixels": 1, "split_sample": 1}
    assert output.manifest["images"] == {"read": 16, "written": 11, "rejected": expected}
    assert output.manifest["tars"] == {"read": 4, "rejected": 1}
    assert [shard["images"] for shard in output.manifest["shards"]] == [4, 4, 3]
    rows = [
        (os.path.basename(row["source"]), row["index"], row["key"], row["stage"], row["reason"])
        for row in output.rejects
    ]
    assert rows == [
        ("00002.tar", 1, "broken", "embed", "undecodable"),
        ("00002.tar", 2, "page", "embed", "undecodable"),
        ("00002.tar", 3, "text", "read", "no_image"),
        ("00002.tar", 4, "big", "embed", "too_many_pixels"),
        ("00002.tar", 5, "good", "read", "split_sample"),
        ("00003.tar", None, None, "read", "unreadable_tar"),
    ]
    assert (output.rejects[3]["width"], output.rejects[3]["height"]) == (300, 200)
    assert all(row["detail"] for row in output.rejects)
    assert verify.main([str(output.directory)]) == 0
    said = capsys.readouterr().out
    assert "16 images read from 4 tars, 11 kept, 3 shards" in said
    assert "2 undecodable" in said
    assert "1 tar could not be read to the end" in said
    assert "11 images embedded, 0 from the embedding store" in said


def test_thresholds_and_heads(tmp_path, curate):
    source = write_dataset(tmp_path / "in", tars=1, samples=12)
    everything = curate(source, output=tmp_path / "all")
    scores = sorted(row["aesthetic_score"] for row in everything.rows)
    middle = scores[6]
    some = curate(source, f"--aesthetic_threshold={middle!r}", output=tmp_path / "some")
    assert sorted(row["aesthetic_score"] for row in some.rows) == scores[6:]
    dropped = [row for row in some.rejects if row["reason"] == "below_aesthetic_threshold"]
    assert sorted(row["aesthetic_score"] for row in dropped) == scores[:6]
    assert all(row["nsfw_score"] is not None for row in dropped)
    off = curate(
        source, "--aesthetic_head=none", "--nsfw_head=none", "--aesthetic_threshold=1000", output=tmp_path / "off"
    )
    assert [row["aesthetic_score"] for row in off.rows] == [None] * 12
    assert off.manifest["models"]["nsfw_head"] is None


def test_the_same_command_again_says_that_there_is_nothing_to_do(tmp_path, curate, capsys):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    first = curate(source)
    before = tree(first.directory)
    curate(source)
    assert "this dataset was there already; nothing was written" in capsys.readouterr().out
    assert tree(first.directory) == before


def test_a_different_dataset_is_refused_and_overwritten_only_when_asked(tmp_path, curate, capsys):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    curate(source)
    curate(source, "--images_per_tar=2", code=1)
    assert "--overwrite" in capsys.readouterr().err
    output = curate(source, "--images_per_tar=2", "--overwrite")
    assert len(output.tars) == 2
    assert verify.main([str(output.directory)]) == 0


def test_without_embeddings_the_column_is_missing_and_the_store_can_be_off(tmp_path, curate):
    output = curate(write_dataset(tmp_path / "in", tars=1, samples=2), "--nowrite_embeddings", "--embeddings_dir=none")
    assert "embedding" not in output.rows[0]
    assert not (output.directory / "_embeddings").exists()


def test_limit_takes_the_first_tars(tmp_path, curate):
    output = curate(write_dataset(tmp_path / "in", tars=3, samples=2), "--limit=2")
    assert Counter(os.path.basename(os.path.dirname(row["original_path"])) for row in output.rows) == {
        "00000.tar": 2,
        "00001.tar": 2,
    }


def test_strict_finishes_the_accounting_and_exits_with_1(tmp_path, curate, capsys):
    source = write_tar(tmp_path / "in.tar", [*sample_members("a"), ("b.jpg", b"broken")])
    output = curate(source, "--strict", code=1)
    assert output.manifest["images"]["rejected"] == {"undecodable": 1}
    assert "--strict: 1 images and 0 tars could not be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (["--output_dir=o"], "--input"),
        (["--input=i"], "--output_dir"),
        (["--input=i", "--output_dir=o", "--images_per_tar=0"], "--images_per_tar"),
        (["--input=i", "--output_dir=o", "--images_per_tar=many"], "--images_per_tar"),
        (["--input=i", "--output_dir=o", "--aesthetic_threshold=nan"], "--aesthetic_threshold"),
        (["--input=i", "--output_dir=o", "--precision=fp8"], "--precision"),
        (["--input=i", "--output_dir=o", "--member_names=random"], "--member_names"),
        (["--input=i", "--output_dir=o", "--clip_model=ViT-X"], "--clip_model"),
        (["--input=i", "--output_dir=o", "--clip_pretrained=nothing"], "--clip_pretrained"),
        (["--input=i", "--output_dir=o", "--clip_model=demo", "--nsfw_head=nsfw_vit_b_32"], "--nsfw_head"),
        (["--input=i", "--output_dir=o", "--imges_per_tar=3"], "--imges_per_tar"),
        (["--input=i", "--output_dir=o", "stray"], "stray"),
        (["--input=i", "--output_dir=o[1]"], "--output_dir"),
        (["--input=i", "--output_dir=o", "--direct_num_workers=many"], "--direct_num_workers"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line_that_names_the_flag(flags, flag, capsys):
    assert main(flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"beam-curate: {flag}")


def test_no_input_exits_with_1_and_names_the_pattern(tmp_path):
    arguments = ["--input", f"{tmp_path}/*.tar", "--output_dir", f"{tmp_path}/out", "--clip_model=demo"]
    ran = subprocess.run([sys.executable, "-m", "beam_curate", *arguments], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == f"beam-curate: --input: nothing matches {tmp_path}/*.tar\n"

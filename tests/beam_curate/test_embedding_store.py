"""Embed once, curate many times: what the store holds, and when it is used."""

from __future__ import annotations

import os
import shutil

import pyarrow.parquet as pq
import pytest
from outputs import Dataset, tree
from tars import sample_members, write_dataset, write_tar

from beam_curate import metrics, verify
from beam_curate.__main__ import main
from beam_curate.models.clip import ClipModelHandler


@pytest.fixture
def source(tmp_path):
    write_dataset(tmp_path / "in", tars=3, samples=6)
    write_tar(tmp_path / "in" / "00003.tar", [*sample_members("x", 90), ("broken.jpg", b"<html>"), ("t.txt", b"text")])
    (tmp_path / "in" / "00004.tar").write_bytes(b"not a tar" * 100)
    return tmp_path / "in"


@pytest.fixture
def run(tmp_path, source, monkeypatch):
    """Runs the command line; gives back the dataset and what Beam's metrics counted."""
    counted: dict[str, int] = {}
    totals = metrics.totals

    def remember(results):
        counted.clear()
        counted.update(totals(results))
        return counted

    monkeypatch.setattr(metrics, "totals", remember)

    def start(name: str, *flags: str, code: int = 0):
        common = (
            "--clip_model=demo",
            "--inference_batch_size=8",
            "--aesthetic_threshold=-100",
            "--nsfw_threshold=100",
            "--noreport",
        )
        assert main([f"--input={source}", f"--output_dir={tmp_path / name}", *common, *flags]) == code
        return Dataset(tmp_path / name), dict(counted)

    return start


def without_store(dataset: Dataset) -> dict[str, str]:
    return {name: digest for name, digest in tree(dataset.directory).items() if not name.startswith("_embeddings/")}


def test_one_file_for_each_tar_holds_every_image_and_failure(run):
    dataset, counted = run("first")
    (store,) = (dataset.directory / "_embeddings").iterdir()
    tables = {path.name: pq.read_table(path) for path in sorted(store.glob("*.parquet"))}
    assert [table.num_rows for table in tables.values()] == [6, 6, 6, 3, 1]
    mixed = list(tables.values())[3].to_pylist()
    assert [row["reason"] for row in mixed] == [None, "undecodable", "no_image"]
    assert (mixed[0]["key"], mixed[0]["width"], mixed[0]["format"], len(mixed[0]["embedding"])) == (
        "x",
        64,
        "jpeg",
        128,
    )
    assert counted[metrics.IMAGES_EMBEDDED] == 19
    assert counted.get(metrics.IMAGES_FROM_STORE, 0) == 0
    assert counted[metrics.MODEL_LOADS] == 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--aesthetic_threshold=5",),
        ("--images_per_tar=4",),
        ("--member_names=sequential",),
        ("--nsfw_head=none", "--nowrite_embeddings"),
    ],
    ids=lambda flags: flags[0].split("=")[0],
)
def test_other_options_take_every_embedding_from_the_store_and_give_the_bytes_of_a_fresh_run(run, flags, capsys):
    first, _ = run("first")
    fresh, _ = run("fresh", *flags, "--embeddings_dir=none")
    capsys.readouterr()
    again, counted = run("again", *flags, f"--embeddings_dir={first.directory}/_embeddings")
    assert without_store(again) == without_store(fresh)
    assert counted.get(metrics.MODEL_LOADS, 0) == 0
    assert counted.get(metrics.IMAGES_EMBEDDED, 0) == 0
    assert counted[metrics.IMAGES_FROM_STORE] == 19
    assert "0 images embedded, 19 from the embedding store" in capsys.readouterr().out


def test_in_place_with_overwrite_nothing_is_embedded_again(run):
    run("first")
    dataset, counted = run("first", "--images_per_tar=5", "--overwrite")
    assert counted.get(metrics.MODEL_LOADS, 0) == 0
    assert [shard["images"] for shard in dataset.manifest["shards"]] == [5, 5, 5, 4]
    assert verify.main([str(dataset.directory)]) == 0


def test_only_new_and_changed_tars_are_embedded(run, source, tmp_path):
    first, _ = run("first")
    store = f"--embeddings_dir={first.directory}/_embeddings"
    write_tar(source / "00009.tar", sample_members("new", 99))
    write_tar(source / "00001.tar", sample_members("changed", 98))
    dataset, counted = run("second", store)
    assert counted[metrics.IMAGES_EMBEDDED] == 2
    assert counted[metrics.IMAGES_FROM_STORE] == 13
    assert {"new", "changed"} <= {row["image_id"] for row in dataset.rows}
    fresh, _ = run("fresh", "--embeddings_dir=none")
    assert without_store(dataset) == without_store(fresh)


def test_another_encoder_has_a_store_of_its_own(run):
    first, _ = run("first")
    store = f"--embeddings_dir={first.directory}/_embeddings"
    dataset, counted = run("second", store, "--max_image_pixels=3000")
    assert counted.get(metrics.IMAGES_FROM_STORE, 0) == 0
    assert dataset.manifest["images"]["rejected"]["too_many_pixels"] == 19
    assert len(list((first.directory / "_embeddings").iterdir())) == 2


def test_weights_that_cannot_be_had_are_not_needed_if_everything_is_in_the_store(
    tmp_path, b32_checkpoint, shared, capsys
):
    write_tar(tmp_path / "in" / "a.tar", sample_members("a") + sample_members("b", 1))
    weights = tmp_path / "weights.safetensors"
    shutil.copy(b32_checkpoint, weights)
    arguments = [
        f"--input={tmp_path}/in",
        "--clip_model=ViT-B-32",
        f"--clip_pretrained={weights}",
        f"--aesthetic_head={shared}/heads/sa_0_4_vit_b_32_linear.safetensors",
        f"--nsfw_head={shared}/heads/clip_autokeras_nsfw_b32.safetensors",
        "--inference_batch_size=2",
        "--nsfw_threshold=2",
        "--noreport",
    ]
    assert main([*arguments, f"--output_dir={tmp_path}/first"]) == 0
    os.remove(weights)
    store = f"--embeddings_dir={tmp_path}/first/_embeddings"
    assert main([*arguments, store, f"--output_dir={tmp_path}/second"]) == 0
    assert without_store(Dataset(tmp_path / "second")) == without_store(Dataset(tmp_path / "first"))
    write_tar(tmp_path / "in" / "b.tar", sample_members("c", 2))
    capsys.readouterr()
    assert main([*arguments, store, f"--output_dir={tmp_path}/third"]) == 1
    assert f"there is no file {weights}" in capsys.readouterr().err
    assert main([*arguments, f"--output_dir={tmp_path}/fourth"]) == 1


def test_a_store_made_on_a_gpu_serves_where_there_is_none():
    from dataclasses import replace

    from beam_curate.options import parse
    from beam_curate.pipeline import choose_encoder

    handler = ClipModelHandler("demo")
    encoder = replace(handler.encoder(), device="cuda", precision="fp16", decoder="dali")
    assert handler.stands_for(encoder, free=True)
    assert not handler.stands_for(encoder, free=False)
    assert not handler.stands_for(replace(encoder, weights_sha256="0" * 64), free=True)
    options = parse(["--input=i", "--output_dir=o", "--clip_model=demo"])
    assert choose_encoder(handler, options, None).device == handler.device


def test_a_damaged_store_file_is_not_trusted(run, tmp_path):
    first, _ = run("first")
    (store,) = (first.directory / "_embeddings").iterdir()
    path = sorted(store.glob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    dataset, counted = run("second", f"--embeddings_dir={first.directory}/_embeddings")
    assert counted[metrics.IMAGES_EMBEDDED] == 6
    assert counted[metrics.IMAGES_FROM_STORE] == 13
    assert without_store(dataset) == without_store(first)

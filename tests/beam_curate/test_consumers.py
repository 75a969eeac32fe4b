"""What others read: each consumer of the output gets the values that were written."""

from __future__ import annotations

import glob
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from PIL import Image
from tars import image_bytes, write_dataset

COUNT = 10


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two tars of five samples as shards of four, three... images."""
    from outputs import Dataset

    from beam_curate.__main__ import main

    root = tmp_path_factory.mktemp("consumers")
    source = write_dataset(root / "in", tars=2, samples=5)
    arguments = ["--clip_model=demo", "--aesthetic_threshold=-100", "--nsfw_threshold=100", "--inference_batch_size=8"]
    arguments.append("--noreport")
    assert main([f"--input={source}", f"--output_dir={root}/out", "--images_per_tar=4", *arguments]) == 0
    return Dataset(root / "out")


def keys() -> list[str]:
    return [f"{tar:03d}{index:05d}" for tar in range(2) for index in range(5)]


def urls(output) -> list[str]:
    return [str(tar) for tar in output.tars]


def test_webdataset(output):
    import webdataset

    samples = list(webdataset.WebDataset(urls(output), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == keys()
    assert [sample["jpg"] for sample in samples] == [image_bytes(seed) for seed in range(COUNT)]
    assert [json.loads(sample["json"])["seed"] for sample in samples] == list(range(COUNT))
    assert [sample["txt"].decode() for sample in samples] == [f"picture {seed}" for seed in range(COUNT)]


def test_a_pytorch_data_loader(output):
    import torch
    import webdataset

    samples = webdataset.WebDataset(urls(output), shardshuffle=False).decode("torchrgb").to_tuple("jpg", "txt")
    loader = torch.utils.data.DataLoader(samples, batch_size=5, num_workers=0)
    images, captions = zip(*loader, strict=True)
    assert [batch.shape for batch in images] == [(5, 3, 48, 64)] * 2
    assert [caption for batch in captions for caption in batch] == [f"picture {seed}" for seed in range(COUNT)]


def test_hugging_face_datasets(output):
    import datasets

    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": urls(output)},
        split="train",
        cache_dir=str(output.directory.parent / "cache"),
    )
    assert found["__key__"] == keys() if isinstance(found["__key__"], list) else list(found["__key__"]) == keys()
    assert list(found["txt"]) == [f"picture {seed}" for seed in range(COUNT)]
    expected = Image.open(io.BytesIO(image_bytes(3)))
    assert np.array_equal(np.asarray(found[3]["jpg"]), np.asarray(expected))
    table = datasets.load_dataset(
        "parquet",
        data_files=[url.replace(".tar", ".parquet") for url in urls(output)],
        split="train",
        cache_dir=str(output.directory.parent / "cache"),
    )
    assert list(table["image_id"]) == keys()
    assert np.asarray(table[0]["embedding"]).shape == (64,)


def test_open_clips_own_loader(output):
    """The data loader of open_clip's training program."""
    import argparse

    import open_clip
    from open_clip_train.data import get_wds_dataset

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    document = output.manifest
    args = argparse.Namespace(
        val_data=f"{output.directory}/images-{document['hash']}-{{000000..000002}}.tar",
        val_num_samples=COUNT,
        batch_size=5,
        workers=1,
        world_size=1,
    )
    data = get_wds_dataset(args, open_clip.image_transform(96, is_train=False), is_train=False, tokenizer=tokenizer)
    batches = list(data.dataloader)
    assert [tuple(images.shape) for images, _ in batches] == [(5, 3, 96, 96)] * 2
    texts = np.concatenate([text.numpy() for _, text in batches])
    assert np.array_equal(texts, tokenizer([f"picture {seed}" for seed in range(COUNT)]).numpy())


def test_dali_reader(output):
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def read():
        jpg, txt = fn.readers.webdataset(paths=urls(output), ext=["jpg", "txt"], missing_component_behavior="error")
        return jpg, txt

    pipe = read()
    pipe.build()
    found = []
    while len(found) < COUNT:
        images, captions = pipe.run()
        found += [(bytes(images.at(i)), bytes(captions.at(i)).decode()) for i in range(len(images))]
    assert found[:COUNT] == [(image_bytes(seed), f"picture {seed}") for seed in range(COUNT)]


def embeddings(output) -> np.ndarray:
    return np.asarray([row["embedding"] for row in output.rows], np.float16)


def test_pyarrow_dataset(output):
    parquets = sorted(glob.glob(f"{output.directory}/images-*.parquet"))
    assert pads.dataset(parquets).schema.field("embedding").type == pa.list_(pa.field("element", pa.float16()), 64)
    # The directory holds tars too, which are not to be taken for Parquet.
    whole = pads.dataset(output.directory, format="parquet", exclude_invalid_files=True)
    for data in (pads.dataset(parquets), whole):
        column = data.to_table()["embedding"].combine_chunks()
        assert np.array_equal(column.flatten().to_numpy().reshape(-1, 64), embeddings(output))
    table = pads.dataset(parquets).to_table(columns=["image_id", "caption", "width"], filter=pads.field("width") == 64)
    assert table["image_id"].to_pylist() == keys()
    assert table["caption"].to_pylist() == [f"picture {seed}" for seed in range(COUNT)]


def test_duckdb(output):
    """DuckDB has no 16-bit floats, and takes no list size from Parquet: it reads the embedding as FLOAT[], exactly."""
    import duckdb

    source = f"'{output.directory}/images-*.parquet'"
    rows = duckdb.sql(f"select image_id, aesthetic_score, caption from {source} order by tar_file, image_id").fetchall()
    expected = [(row["image_id"], row["aesthetic_score"], row["caption"]) for row in output.rows]
    assert rows == expected
    (kinds,) = {str(row[0]) for row in duckdb.sql(f"select typeof(embedding) from {source}").fetchall()}
    assert kinds == "FLOAT[]"
    found = duckdb.sql(f"select embedding from {source} order by image_id").fetchall()
    assert np.array_equal(np.asarray([row[0] for row in found]), embeddings(output).astype(np.float64))
    similar = (
        f"list_cosine_similarity(a.embedding, b.embedding) from {source} a, {source} b where a.image_id = b.image_id"
    )
    assert all(abs(row[0] - 1) < 1e-6 for row in duckdb.sql(f"select {similar}").fetchall())


def test_polars(output):
    import polars

    lazy = polars.scan_parquet(f"{output.directory}/images-*.parquet")
    found = lazy.filter(polars.col("width") == 64).select("image_id", "aesthetic_score").collect()
    assert found.rows() == [(row["image_id"], row["aesthetic_score"]) for row in output.rows]
    frame = polars.read_parquet(f"{output.directory}/images-*.parquet")
    assert frame.schema["embedding"] == polars.Array(polars.Float16, 64)
    assert np.array_equal(frame["embedding"].to_numpy(), embeddings(output))


def test_pandas(output):
    import pandas

    frame = pandas.concat([pandas.read_parquet(url.replace(".tar", ".parquet")) for url in urls(output)])
    assert list(frame["image_id"]) == keys()
    assert np.stack(frame["embedding"]).astype(np.float16).shape == (COUNT, 64)
    assert frame["aesthetic_score"].dtype == np.float32

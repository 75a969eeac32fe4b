"""The main job on real photographs, with a ViT-B-32 and the real heads, through DALI and through Pillow."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from outputs import Dataset
from PIL import Image
from safetensors.torch import load_file
from tars import read_members

from beam_curate import verify
from beam_curate.__main__ import main
from beam_curate.models import clip
from beam_curate.models.heads import HeadSpec

PER_TAR = 70


@pytest.fixture(scope="module")
def sources(shared) -> dict[str, bytes]:
    """Every member of the photographs' tars, in order."""
    return {name: data for i in range(3) for name, data in read_members(shared / "photos" / f"{i:05d}.tar")}


@pytest.fixture(scope="module", params=["dali", "pillow"])
def through(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def dataset(shared, b32_checkpoint, through, tmp_path_factory) -> Dataset:
    patch = pytest.MonkeyPatch()
    patch.setattr(clip, "has_dali", lambda: through == "dali")
    output = tmp_path_factory.mktemp(through)
    arguments = [
        f"--input={shared}/photos",
        f"--output_dir={output}",
        "--clip_model=ViT-B-32",
        f"--clip_pretrained={b32_checkpoint}",
        f"--aesthetic_head={shared}/heads/sa_0_4_vit_b_32_linear.safetensors",
        f"--nsfw_head={shared}/heads/clip_autokeras_nsfw_b32.safetensors",
        "--aesthetic_threshold=-100",
        "--nsfw_threshold=1.1",
        f"--images_per_tar={PER_TAR}",
        "--inference_batch_size=60",
        "--device=cpu",
        "--noreport",
    ]
    with patch.context():
        assert main(arguments) == 0
    patch.undo()
    return Dataset(output)


@pytest.fixture(scope="module")
def reference(b32_checkpoint, sources) -> np.ndarray:
    """open_clip's own preprocessing and ``encode_image``, for every photograph."""
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=b32_checkpoint)
    model.eval()
    photos = [data for name, data in sources.items() if name.endswith(".jpg")]
    batches = []
    with torch.inference_mode():
        for start in range(0, len(photos), 60):
            pixels = torch.stack([preprocess(Image.open(io.BytesIO(photo))) for photo in photos[start : start + 60]])
            batches.append(model.encode_image(pixels, normalize=True).double().numpy())
    return np.concatenate(batches)


def embeddings(dataset: Dataset) -> np.ndarray:
    return np.array([row["embedding"] for row in dataset.rows], np.float64)


def test_shards_are_exactly_full_but_the_last(dataset):
    assert [shard["images"] for shard in dataset.manifest["shards"]] == [70, 70, 70, 30]
    assert dataset.manifest["images"] == {"read": 240, "written": 240, "rejected": {}}
    assert verify.main([str(dataset.directory)]) == 0


def test_every_member_is_byte_identical_to_its_source(dataset, sources):
    written = [member for tar in dataset.tars for member in read_members(tar)]
    assert written == list(sources.items())


def test_every_column_has_its_type(dataset):
    path = dataset.tars[0].with_suffix(".parquet")
    schema = pq.read_schema(path)
    string = dict.fromkeys(
        ("image_id", "tar_file", "member_name", "original_path", "original_key", "caption"), pa.string()
    )
    expected = {
        **string,
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "sha256": pa.string(),
        "aesthetic_score": pa.float32(),
        "nsfw_score": pa.float32(),
        "embedding": pa.list_(pa.float16(), 512),
        "metadata": pa.string(),
    }
    assert dict(zip(schema.names, schema.types, strict=True)) == expected
    assert list(schema.names) == list(expected)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    facts = {key.decode().removeprefix("beam_curate."): value.decode() for key, value in schema.metadata.items()}
    assert facts["encoder"] == "ViT-B-32"
    assert facts["nsfw_head"] == "nsfw_vit_b_32"
    assert facts["aesthetic_head_sha256"] == "61f78d14fb6c4a9cdfcc7183bd374dcfa43002f82b68f5d0cf8ddf2ec5ad6a06"
    assert (facts["nsfw_threshold"], facts["precision"], facts["version"]) == ("1.1", "fp32", "0.1.0")


def test_rows_describe_their_images(dataset, sources, shared):
    for i, row in enumerate(dataset.rows):
        key = row["original_key"]
        image, text = sources[f"{key}.jpg"], sources[f"{key}.json"]
        assert (row["image_id"], row["member_name"]) == (key, f"{key}.jpg")
        assert row["tar_file"] == dataset.tars[i // PER_TAR].name
        assert row["original_path"] == f"{shared}/photos/{int(key) // 10000:05d}.tar/{key}.jpg"
        assert (row["caption"], row["metadata"]) == (sources[f"{key}.txt"].decode(), text.decode())
        assert (row["width"], row["height"]) == (json.loads(text)["width"], json.loads(text)["height"])
        assert row["format"] == "jpeg"
        assert row["sha256"] == hashlib.sha256(image).hexdigest()


def test_embeddings_are_open_clips(dataset, reference):
    found = embeddings(dataset)
    cosines = (found * reference).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
    assert cosines.min() >= 0.9999


def test_scores_are_those_of_a_float64_reference_of_the_whole_path(dataset, reference, shared, through):
    aesthetic = load_file(shared / "heads" / "sa_0_4_vit_b_32_linear.safetensors")
    nsfw = {
        k: v.double().numpy() for k, v in load_file(shared / "heads" / "clip_autokeras_nsfw_b32.safetensors").items()
    }
    expected_aesthetic = reference @ aesthetic["weight"].double().numpy()[0] + aesthetic["bias"].double().numpy()
    x = (reference - nsfw["norm.mean"]) / np.sqrt(nsfw["norm.variance"])
    for layer in (1, 2):
        x = np.maximum(x @ nsfw[f"linear_{layer}.weight"].T + nsfw[f"linear_{layer}.bias"], 0)
    expected_nsfw = 1 / (1 + np.exp(-(x @ nsfw["linear_3.weight"].T + nsfw["linear_3.bias"])[:, 0]))
    bounds = {"pillow": (0.005, 0.002), "dali": (0.02, 0.02)}[through]
    rows = dataset.rows
    assert np.abs(np.array([row["aesthetic_score"] for row in rows]) - expected_aesthetic).max() < bounds[0]
    assert np.abs(np.array([row["nsfw_score"] for row in rows]) - expected_nsfw).max() < bounds[1]


def test_the_embedding_column_alone_gives_the_scores_back(dataset, shared):
    vectors = np.concatenate(
        [
            pq.read_table(tar.with_suffix(".parquet"))["embedding"]
            .combine_chunks()
            .flatten()
            .to_numpy()
            .reshape(-1, 512)
            for tar in dataset.tars
        ]
    )
    models = dataset.manifest["models"]
    for kind, file in (("aesthetic", "sa_0_4_vit_b_32_linear"), ("nsfw", "clip_autokeras_nsfw_b32")):
        facts = models[f"{kind}_head"]
        head = HeadSpec(facts["name"], str(shared / "heads" / f"{file}.safetensors"), facts["sha256"], 512, "").load()
        assert head(vectors).tolist() == [row[f"{kind}_score"] for row in dataset.rows]

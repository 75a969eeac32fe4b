"""The image tower and its handler: open_clip's own embeddings, one failure at a time."""

from __future__ import annotations

import io
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tars import image_bytes, read_members

from beam_curate.errors import CurateError, UsageError
from beam_curate.models.clip import Checkpoint, ClipModelHandler, build_tower, find_checkpoint
from beam_curate.records import ImageRecord, Rejection, Sample, SourceTar, TarEnd


def sample(image: bytes, index: int = 0) -> Sample:
    return Sample("a.tar", index, f"k{index}", f"k{index}", f"k{index}.jpg", 0, 0, b"", image)


def embed(handler: ClipModelHandler, images: list[bytes]) -> list:
    model = handler.load_model()
    return handler.run_inference([sample(image, index) for index, image in enumerate(images)], model)


@pytest.fixture(scope="session")
def photos(shared) -> list[bytes]:
    return [data for name, data in read_members(shared / "photos" / "00001.tar") if name.endswith(".jpg")]


def test_embeddings_are_those_of_open_clip(b32_checkpoint, photos, decoder):
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=b32_checkpoint)
    model.eval()
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(photo))) for photo in photos])
        expected = model.encode_image(pixels, normalize=True).numpy()
    handler = ClipModelHandler("ViT-B-32", b32_checkpoint, device="cpu", batch_size=len(photos), decoder=decoder)
    records = embed(handler, photos)
    vectors = np.stack([record.vector for record in records]).astype(np.float64)
    assert vectors.shape == (len(photos), 512)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-3
    cosines = (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999
    image = Image.open(io.BytesIO(photos[0]))
    assert (records[0].width, records[0].height, records[0].format) == (*image.size, "jpeg")


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32-quickgelu", "coca_ViT-B-32", "MobileCLIP-S1"])
def test_the_tower_of_any_architecture_is_open_clips(name, tmp_path):
    torch.manual_seed(1)
    model = open_clip.create_model(name)
    model.eval()
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    checkpoint = find_checkpoint(name, str(tmp_path / "weights.safetensors"))
    tower = build_tower(checkpoint, load_file(tmp_path / "weights.safetensors"), torch.float32)
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        pixels = torch.randn(2, 3, height, width)
        found = tower(pixels)
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True), model.encode_image(pixels, normalize=True))


def test_other_entries_pass_and_every_failure_is_one_images_failure(decoder):
    handler = ClipModelHandler("demo", batch_size=8, max_image_pixels=10_000, decoder=decoder)
    good = [image_bytes(seed) for seed in range(3)]
    truncated = image_bytes(5)[:-200]
    rejection = Rejection("a.tar", 7, "k", "read", "no_image", "")
    end = TarEnd(SourceTar("a.tar", 1, 0.0), 8)
    batch = [
        sample(good[0], 0),
        rejection,
        sample(truncated, 1),
        sample(good[1], 2),
        sample(b"<html>", 3),
        sample(image_bytes(0, size=(200, 100)), 4),
        sample(good[2], 5),
        end,
    ]
    results = handler.run_inference(batch, handler.load_model())
    assert len(results) == len(batch)
    assert results[1] is rejection
    assert results[7] is end
    assert [result.reason for result in results if isinstance(result, Rejection)] == [
        "no_image",
        "undecodable",
        "undecodable",
        "too_many_pixels",
    ]
    assert [result.index for result in results if isinstance(result, ImageRecord)] == [0, 2, 5]
    assert (results[5].width, results[5].height) == (200, 100)
    assert results[2].detail.startswith("k1.jpg: ")
    alone = handler.run_inference([sample(good[1], 2)], handler.load_model())
    assert alone[0].embedding == results[3].embedding


def test_the_demo_model_needs_no_weights_and_loads_when_the_first_image_comes():
    handler = ClipModelHandler("demo", batch_size=2)
    model = handler.load_model()
    assert model._tower is None
    handler.run_inference([TarEnd(SourceTar("a.tar", 1, 0.0), 0)], model)
    assert model._tower is None
    handler.run_inference([sample(image_bytes())], model)
    assert model._tower is not None


def test_openai_weights_get_quickgelu():
    assert find_checkpoint("ViT-L-14", "openai").config["quick_gelu"] is True
    assert find_checkpoint("ViT-B-32", "laion2b_s34b_b79k").config.get("quick_gelu", False) is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"clip_model": "ViT-B-33"}, "--clip_model: open_clip has no model 'ViT-B-33'; did you mean ViT-B-32"),
        ({"clip_pretrained": "laion3b"}, "--clip_pretrained: 'laion3b' is neither a file nor a tag of ViT-L-14"),
        ({"device": "tpu"}, "--device"),
        ({"precision": "fp8"}, "--precision"),
        ({"device": "cpu", "precision": "fp16"}, "--precision=fp16 needs --device=cuda"),
        ({"batch_size": 0}, "--inference_batch_size"),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(UsageError) as error:
        ClipModelHandler(**arguments)
    assert str(error.value).startswith(says)


def test_a_checkpoint_of_another_model_is_refused(b32_checkpoint):
    handler = ClipModelHandler("ViT-B-16", b32_checkpoint, device="cpu", batch_size=1)
    with pytest.raises(CurateError, match="is not a checkpoint of ViT-B-16"):
        embed(handler, [image_bytes()])


def test_a_checkpoint_that_is_not_there_is_named():
    with pytest.raises(CurateError, match=r"there is no file /nowhere/weights\.pt"):
        ClipModelHandler("ViT-B-32", "/nowhere/weights.pt").encoder()


def test_weights_that_change_during_a_run_are_noticed(tmp_path):
    demo = find_checkpoint("demo", "demo")
    shutil.copy(demo.locate(), tmp_path / "weights.safetensors")
    handler = ClipModelHandler("demo", batch_size=1)
    handler.checkpoint = Checkpoint("demo", str(tmp_path / "weights.safetensors"), demo.config, demo.preprocess)
    before = handler.encoder()
    assert before.weights_sha256 == ClipModelHandler("demo").encoder().weights_sha256
    tensors = load_file(tmp_path / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(CurateError, match="has changed since the run was started"):
        embed(handler, [image_bytes()])
    assert handler.encoder().fingerprint != before.fingerprint


@pytest.mark.parametrize("name", ["demo", "ViT-B-32"])
def test_an_embedding_does_not_depend_on_its_batch(name, b32_checkpoint, photos, decoder):
    weights = "openai" if name == "demo" else b32_checkpoint
    handler = ClipModelHandler(name, weights, device="cpu", batch_size=16, decoder=decoder)
    model = handler.load_model()

    def embeddings(images: list[bytes]) -> list[bytes]:
        results = handler.run_inference([sample(image, i) for i, image in enumerate(images)], model)
        return [result.embedding for result in results]

    one, others = photos[0], photos[1:16]
    (alone,) = embeddings([one])
    assert embeddings([one, *others])[0] == alone
    assert embeddings([*others, one])[-1] == alone
    assert embeddings([*photos[20:27], one, *photos[27:35]])[7] == alone
    assert sorted(embeddings([*others, one])) == sorted(embeddings([one, *others]))

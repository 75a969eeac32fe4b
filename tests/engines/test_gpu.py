"""On a CUDA device: the same embeddings as on the CPU, whatever shares the batch, and memory that runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tars import image_bytes

from beam_curate.models.clip import ClipModel, ClipModelHandler
from beam_curate.records import ImageRecord, Sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

IMAGES = [image_bytes(seed, size=(300 + seed, 260)) for seed in range(64)]


def embed(handler: ClipModelHandler, images: list[bytes], model: ClipModel | None = None) -> list[bytes]:
    samples = [Sample("", i, "", "", "x", 0, 0, b"", data) for i, data in enumerate(images)]
    results = handler.run_inference(samples, model or handler.load_model())
    return [result.embedding for result in results if isinstance(result, ImageRecord)]


def vectors(embeddings: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(embedding, "<f2") for embedding in embeddings]).astype(np.float64)


def handler(checkpoint: str, device: str, precision: str, batch_size: int = 64) -> ClipModelHandler:
    return ClipModelHandler("ViT-B-32", checkpoint, device=device, precision=precision, batch_size=batch_size)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_embeddings_are_those_of_the_cpu(b32_checkpoint, precision):
    on_card = vectors(embed(handler(b32_checkpoint, "cuda", precision), IMAGES))
    on_cpu = vectors(embed(handler(b32_checkpoint, "cpu", "fp32"), IMAGES))
    cosines = (on_card * on_cpu).sum(1) / np.linalg.norm(on_card, axis=1) / np.linalg.norm(on_cpu, axis=1)
    assert cosines.min() >= 0.9995


def test_neighbours_in_the_batch_change_no_bit(b32_checkpoint):
    model = handler(b32_checkpoint, "cuda", "fp16")
    together = embed(model, IMAGES)
    assert embed(model, IMAGES[:1]) == together[:1]
    assert embed(model, IMAGES[::-1]) == together[::-1]
    assert embed(model, IMAGES[32:] + IMAGES[:32]) == together[32:] + together[:32]


def test_a_batch_that_does_not_fit_into_memory_is_halved(b32_checkpoint):
    big = handler(b32_checkpoint, "cuda", "fp32", batch_size=1024)
    images = IMAGES * 16
    expected = vectors(embed(big, images))
    torch.cuda.empty_cache()
    needed = torch.cuda.memory_allocated() + (150 << 20)
    torch.cuda.set_per_process_memory_fraction(needed / torch.cuda.get_device_properties(0).total_memory)
    try:
        model = big.load_model()
        found = vectors(embed(big, images, model))
        assert model._rows < 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose((found * expected).sum(1), 1, atol=1e-3)

"""Preprocessing alone: DALI against Pillow against open_clip's own transform, and how far each is from the last."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from crops import crops
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from runs import arguments, table

from beam_curate.formats.files import open_tar
from beam_curate.formats.tar import iter_samples
from beam_curate.models.clip import build_tower, find_checkpoint
from beam_curate.models.preprocess import DaliPreprocessor, PillowPreprocessor, Preprocess, read_header, region

BATCH = 256
LIMIT = 100_000_000
MODEL = "ViT-B-32"


def draft(images, preprocess: Preprocess, out: np.ndarray) -> None:
    """Pillow with the JPEG decoder's own downscaling, to not less than the size that is needed."""
    for i, (data, header) in enumerate(images):
        part = region(header, preprocess)
        image = Image.open(io.BytesIO(data))
        full = image.size
        image.draft("RGB", part.stored_size)
        scale = (image.width / full[0], image.height / full[1])
        box = tuple(edge * scale[axis % 2] for axis, edge in enumerate(part.box))
        out[i] = image.convert("RGB").resize(part.stored_size, Image.Resampling.BICUBIC, box=box)


def cosines(
    tower: torch.nn.Module, preprocess: Preprocess, pixels: np.ndarray, reference: torch.Tensor
) -> torch.Tensor:
    """Cosines between embeddings of pixels, uint8 ``[n, h, w, 3]``, and of what open_clip's transform gives."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    ours = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        return torch.nn.functional.cosine_similarity(tower(ours), tower(reference))


def main() -> None:
    chosen = arguments(__doc__, images=(2500, "images"), compared=(256, "images whose embeddings are compared"))
    source = crops(chosen.photos, chosen.work, chosen.images)
    encoded = [sample.image for tar in sorted(source.iterdir()) for sample in iter_samples(open_tar(str(tar)))]
    images = [(data, read_header(data, LIMIT)) for data in encoded]
    checkpoint = find_checkpoint(MODEL, "openai")
    preprocess = Preprocess.from_open_clip(checkpoint.preprocess)
    transform = image_transform_v2(PreprocessCfg(**checkpoint.preprocess), is_train=False)
    dali, pillow = DaliPreprocessor(preprocess, BATCH, "cpu"), PillowPreprocessor(preprocess)
    ways: dict[str, Callable] = {
        "open_clip's transform (Pillow + torchvision)": lambda part, out: [
            transform(Image.open(io.BytesIO(data))) for data, _ in part
        ],
        "Pillow": pillow,
        "Pillow, JPEG draft mode": lambda part, out: draft(part, preprocess, out),
        "DALI": dali,
    }
    out = np.zeros((BATCH, *preprocess.size, 3), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():  # what is built at the first call
        way(images[:BATCH], out)
    for _ in range(chosen.repetitions):
        for name, way in ways.items():
            started = time.perf_counter()
            for i in range(0, len(images), BATCH):
                way(images[i : i + BATCH], out)
            seconds[name].append(time.perf_counter() - started)
    torch.manual_seed(0)
    tower = build_tower(checkpoint, None, torch.float32)
    first = images[: chosen.compared]
    reference = torch.stack([transform(Image.open(io.BytesIO(data))) for data, _ in first])
    worst = {}
    for name, way in list(ways.items())[1:]:
        pixels = np.zeros((len(first), *preprocess.size, 3), np.uint8)
        for i in range(0, len(first), BATCH):
            way(first[i : i + BATCH], pixels[i : i + BATCH])
        worst[name] = f"{cosines(tower, preprocess, pixels, reference).min().item():.6f}"
    rates = {name: len(images) / statistics.median(times) for name, times in seconds.items()}
    base = next(iter(rates.values()))
    table(
        ("", "images/s", "of open_clip's", "worst cosine"),
        [(name, f"{rate:.0f}", rate / base, worst.get(name, "1")) for name, rate in rates.items()],
    )


if __name__ == "__main__":
    main()

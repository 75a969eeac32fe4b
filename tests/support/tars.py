"""Real tars and images for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def image_bytes(
    seed: int = 0, size: tuple[int, int] = (64, 48), format: str = "JPEG", mode: str = "RGB", **save
) -> bytes:
    """An encoded image with smooth random content, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format, **save)
    return buffer.getvalue()


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w", format: int = tarfile.PAX_FORMAT
) -> str:
    """A tar with these members; its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample_members(key: str, seed: int = 0, caption: str | None = None, **image) -> list[tuple[str, bytes]]:
    """The members of an ordinary sample: image, metadata, caption."""
    return [
        (f"{key}.jpg", image_bytes(seed, **image)),
        (f"{key}.json", json.dumps({"seed": seed}).encode()),
        (f"{key}.txt", (caption if caption is not None else f"picture {seed}").encode()),
    ]


def write_dataset(directory: Path, tars: int, samples: int) -> str:
    """``tars`` tars of ``samples`` ordinary samples each; a glob that matches them."""
    for number in range(tars):
        members = [
            member
            for index in range(samples)
            for member in sample_members(f"{number:03d}{index:05d}", seed=number * samples + index)
        ]
        write_tar(directory / f"{number:05d}.tar", members)
    return str(directory / "*.tar")


def read_members(path: str | Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]

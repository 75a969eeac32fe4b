"""Made-up pictures for the demonstration: sharp, tinted, blurred, noisy and flat ones, and broken files."""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# What the demonstration heads are fitted to: aesthetic scores on LAION's scale, and the probability of being "NSFW",
# for which a red tint stands in.
AESTHETIC_TARGETS = {"sharp": 7.0, "tinted": 7.0, "blurred": 3.0, "noisy": 2.0, "flat": 1.0}
NSFW_TARGETS = {"sharp": 0.05, "tinted": 0.95, "blurred": 0.05, "noisy": 0.05, "flat": 0.05}
KINDS = tuple(AESTHETIC_TARGETS)
BROKEN = ("truncated", "text", "empty")


def picture(kind: str, rng: random.Random) -> Image.Image:
    """One RGB picture of a kind, 200 to 400 pixels on a side."""
    width, height = rng.randint(200, 400), rng.randint(200, 400)
    if kind == "flat":
        return Image.new("RGB", (width, height), tuple(rng.randint(30, 225) for _ in range(3)))
    image = _scene(width, height, rng)
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(9, 14)))
    pixels = np.asarray(image).astype(np.float64)
    if kind == "noisy":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 80, pixels.shape)
        pixels = pixels * 0.5 + 64 + noise
    elif kind == "tinted":
        pixels = pixels * np.array([0.4, 0.15, 0.25]) + np.array([150, 20, 60])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _scene(width: int, height: int, rng: random.Random) -> Image.Image:
    """A gradient with hard-edged shapes on it."""
    down = np.linspace(0, 1, height)[:, None, None]
    top, bottom = (np.array([rng.randint(40, 215) for _ in range(3)]) for _ in range(2))
    image = Image.fromarray((top * (1 - down) + bottom * down + np.zeros((height, width, 1))).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(40, 70)):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 40)
        colour = tuple(rng.randint(0, 255) for _ in range(3))
        corners = rng.randint(3, 6)
        turn = rng.uniform(0, math.tau)
        angles = [turn + math.tau * i / corners for i in range(corners)]
        draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill=colour, outline=(0, 0, 0))
    return image


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sample(kind: str, rng: random.Random) -> dict[str, bytes]:
    """The members of one sample, by extension."""
    if kind == "truncated":
        whole = encoded(picture("sharp", rng))
        image = whole[: len(whole) // 2]
    elif kind == "text":
        image = b"<html>404 Not Found</html>"
    elif kind == "empty":
        image = b""
    else:
        image = encoded(picture(kind, rng))
    return {"jpg": image, "json": json.dumps({"kind": kind}).encode(), "txt": f"a {kind} picture".encode()}


def write_tars(directory: Path, tars: int, samples_per_tar: int, seed: int = 0) -> None:
    """Writes ``00000.tar`` and so on: all kinds in turn, and every 15th sample broken."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(tars):
        with tarfile.open(directory / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(samples_per_tar):
                broken = index % 15 == 14
                kind = BROKEN[index // 15 % len(BROKEN)] if broken else KINDS[index % len(KINDS)]
                for extension, data in sample(kind, rng).items():
                    info = tarfile.TarInfo(f"{number:05d}{index:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

"""The benchmarks' input: tars of crops of about 50 KB, made from real photographs."""

from __future__ import annotations

import io
import random
import tarfile
from multiprocessing import Pool
from pathlib import Path

from PIL import Image

from beam_curate.formats.files import open_tar
from beam_curate.formats.tar import iter_samples

DIFFERENT = 2500  # crops; more images than these repeat them under other keys
PER_TAR = 250
_SIDES = (640, 900)  # pixels; of photographs of at most so many; at this quality about 50 KB
_QUALITY = 97


def crops(photos: Path, work: Path, images: int) -> Path:
    """A directory with so many images, 250 a tar. What is there already is not made again.

    Args:
      photos: a directory of tars with photographs.
      work: where the crops go.
      images: a multiple of 250.
    """
    directory = work / f"crops-{images}"
    if directory.exists():
        return directory
    originals = [
        sample.image
        for tar in sorted(photos.glob("*.tar"))
        for sample in iter_samples(open_tar(str(tar)))
        if sample.image is not None and sample.image_member.lower().endswith((".jpg", ".jpeg"))
    ]
    with Pool() as pool:
        encoded = pool.starmap(_crop, [(originals[i % len(originals)], i) for i in range(min(images, DIFFERENT))], 50)
    unfinished = work / f".crops-{images}"
    unfinished.mkdir(parents=True, exist_ok=True)
    for number in range(images // PER_TAR):
        with tarfile.open(unfinished / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(number * PER_TAR, (number + 1) * PER_TAR):
                for extension, data in (("jpg", encoded[index % len(encoded)]), ("txt", b"a crop of a photograph")):
                    info = tarfile.TarInfo(f"{index:08d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    unfinished.rename(directory)
    return directory


def _crop(photo: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    width, height = (min(rng.randint(*_SIDES), side) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    buffer = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()

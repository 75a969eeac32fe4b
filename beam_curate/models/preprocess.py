"""From an encoded image to the pixels that a CLIP image tower sees, by DALI or by Pillow.

Both follow one geometry, open_clip's own (``open_clip.transform.image_transform_v2``): resize the upright image, then
crop or pad around its centre. The crop is not cut from a resized image but resampled alone, from its region of the
source: the same numbers, and no memory for what a crop of a very long image would throw away.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from beam_curate.records import TOO_MANY_PIXELS, UNDECODABLE

Pixels = npt.NDArray[np.uint8]

Image.init()  # or only the commonest formats are registered
# Formats that Pillow decodes by itself, without calling other programs (EPS would start Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
_FORMAT_NAMES = {"mpo": "jpeg", "dib": "bmp"}
# What DALI decodes to the same pixels as Pillow; the rest is Pillow's. So are pictures of few colours: Pillow rounds
# between the two passes of a resize, DALI does not, which shows at hard edges.
_DALI_FORMATS = frozenset(("jpeg", "png", "webp", "bmp"))
_DALI_MODES = frozenset(("L", "LA", "RGB", "RGBA", "CMYK"))
# Decoded pixels that may be held at once. A larger image goes through Pillow, alone.
_PIXELS_AT_ONCE = 1 << 25
_EXIF_ORIENTATION = 0x0112
_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# What Pillow's decoders raise on broken files. There is no end to it: plugins pass on whatever their libraries raise
# (the fuzzer found RuntimeError from AVIF within a second), and each is the failure of one image.
_DECODER_ERRORS = Exception


class ImageError(Exception):
    """One image cannot be used: ``reason`` is one of ``records``' reasons, ``header`` what was known of it."""

    def __init__(self, reason: str, detail: str, header: Header | None = None):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.header = header


@dataclass(frozen=True)
class Header:
    """What an image says of itself. ``width`` and ``height`` are upright; ``orientation`` is EXIF's, 1 to 8."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True)
class Preprocess:
    """open_clip's ``preprocess_cfg``: ``size`` is (height, width), ``mean`` and ``std`` are for channels in 0 to 1."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int

    @classmethod
    def from_open_clip(cls, cfg: Mapping[str, Any]) -> Preprocess:
        size = cfg["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        interpolation, mode = cfg["interpolation"], cfg["resize_mode"]
        if interpolation not in _INTERPOLATIONS or mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"unknown preprocessing: interpolation {interpolation!r}, resize mode {mode!r}")
        if mode == "shortest" and height != width:
            interpolation = "bicubic"  # what open_clip does there, whatever the configuration says
        return cls((height, width), tuple(cfg["mean"]), tuple(cfg["std"]), interpolation, mode, int(cfg["fill_color"]))


@dataclass(frozen=True)
class Region:
    """Which part of the image as stored is resampled to which size, and where that goes in the result.

    ``box`` is (left, top, right, bottom) in source pixels, ``size`` and ``paste`` are (width, height) and (left, top)
    in the upright result.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    paste: tuple[int, int]
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        return (self.size[1], self.size[0]) if self.orientation >= 5 else self.size


def region(header: Header, preprocess: Preprocess) -> Region:
    """The geometry of torchvision's and open_clip's transforms for one image."""
    (target_h, target_w), w, h = preprocess.size, header.width, header.height
    if preprocess.resize_mode == "squash":
        resized = (target_w, target_h)
    elif preprocess.resize_mode == "longest" or target_h != target_w:
        pick = max if preprocess.resize_mode == "longest" else min
        ratio = pick(h / target_h, w / target_w)
        resized = (max(round(w / ratio), 1), max(round(h / ratio), 1))
    elif w <= h:
        resized = (target_w, int(target_w * h / w))
    else:
        resized = (int(target_w * w / h), target_w)
    left, width, x = _crop_or_pad(resized[0], target_w)
    top, height, y = _crop_or_pad(resized[1], target_h)
    box = (left / resized[0], top / resized[1], (left + width) / resized[0], (top + height) / resized[1])
    left_part, top_part, right_part, bottom_part = _in_stored_image(box, header.orientation)
    stored_w, stored_h = (h, w) if header.orientation >= 5 else (w, h)
    return Region(
        (left_part * stored_w, top_part * stored_h, right_part * stored_w, bottom_part * stored_h),
        (width, height),
        (x, y),
        header.orientation,
    )


def _crop_or_pad(resized: int, target: int) -> tuple[int, int, int]:
    """Along one axis: where the crop begins in the resized image, its length, and where it goes in the target."""
    if resized >= target:
        return round((resized - target) / 2.0), target, 0
    return 0, resized, (target - resized) // 2


def _in_stored_image(box: tuple[float, float, float, float], orientation: int) -> tuple[float, float, float, float]:
    """A box in fractions of the upright image, in fractions of the image as stored (EXIF 2.3, tag 0x0112)."""
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def read_header(data: bytes, max_pixels: int) -> Header:
    """Format and size of an encoded image, without decoding it.

    Raises:
      ImageError: it is no image of a known format, or has more than ``max_pixels`` pixels.
    """
    with _open(data) as image:
        name = str(image.format).lower()
        width, height = image.size
        orientation = _orientation(image)
        if orientation >= 5:
            width, height = height, width
        header = Header(_FORMAT_NAMES.get(name, name), image.mode, width, height, orientation)
    if header.pixels > max_pixels:
        detail = f"{width} x {height} is more than --max_image_pixels={max_pixels}"
        raise ImageError(TOO_MANY_PIXELS, detail, header)
    if header.pixels == 0:
        raise ImageError(UNDECODABLE, f"{width} x {height} pixels", header)
    return header


def thumbnail(data: bytes, side: int, max_pixels: int) -> Image.Image:
    """A small upright RGB copy of an encoded image, neither width nor height above ``side`` pixels.

    Raises:
      ImageError: it cannot be decoded, or has more than ``max_pixels`` pixels.
    """
    header = read_header(data, max_pixels)
    try:
        with _open(data) as image:
            image.draft(None, (2 * side, 2 * side))
            small = _to_rgb(image)
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(UNDECODABLE, f"{type(error).__name__}: {error}", header) from error
    return Image.fromarray(np.ascontiguousarray(_upright(np.asarray(small), header.orientation)))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(UNDECODABLE, f"not an image of a known format ({len(data)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(TOO_MANY_PIXELS, str(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError(UNDECODABLE, f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    # Pillow turns a TIFF upright itself, and says its upright size.
    if image.format == "TIFF" or not ({"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys()):
        return 1
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return orientation if orientation in range(1, 9) else 1


class Preprocessor(Protocol):
    """Turns encoded images into pixels. Not safe for concurrent calls: each thread has its own."""

    def __call__(self, images: Sequence[tuple[bytes, Header]], out: Pixels) -> list[ImageError | None]:
        """Fills ``out``, uint8 ``[n, height, width, 3]``; says for each image what was wrong with it, if anything."""


class PillowPreprocessor:
    """Decodes with Pillow, on every core: it lets go of the interpreter. The reference for what an image is."""

    def __init__(self, preprocess: Preprocess):
        self._preprocess = preprocess

    def __call__(self, images: Sequence[tuple[bytes, Header]], out: Pixels) -> list[ImageError | None]:
        return [error for _, error in self.some(images, range(len(images)), out)]

    def some(
        self, images: Sequence[tuple[bytes, Header]], chosen: Iterable[int], out: Pixels
    ) -> Iterator[tuple[int, ImageError | None]]:
        """Fills ``out`` where an image is chosen; gives each one's number, and what was wrong with it, if anything."""
        for group in _within_budget(images, chosen):
            yield from zip(group, _decoders().map(lambda i: self._one(*images[i], out[i]), group), strict=True)

    def _one(self, data: bytes, header: Header, out: Pixels) -> ImageError | None:
        part = region(header, self._preprocess)
        try:
            with _open(data) as image:
                resized = _to_rgb(image).resize(
                    part.stored_size, _INTERPOLATIONS[self._preprocess.interpolation], box=part.box
                )
        except ImageError as error:
            return error
        except _DECODER_ERRORS as error:
            return ImageError(UNDECODABLE, f"{type(error).__name__}: {error}", header)
        _place(np.asarray(resized), part, self._preprocess, out)
        return None


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """The threads of this process that decode with Pillow, however many threads of Beam's ask for it."""
    return ThreadPoolExecutor(os.cpu_count(), "decode")


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # 16 bits a sample: Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _place(resized: Pixels, part: Region, preprocess: Preprocess, out: Pixels) -> None:
    upright = _upright(resized, part.orientation)
    height, width = upright.shape[:2]
    if (height, width) != preprocess.size:
        out[...] = preprocess.fill_color
    out[part.paste[1] : part.paste[1] + height, part.paste[0] : part.paste[0] + width] = upright


class DaliPreprocessor:
    """Decodes and resizes batches with NVIDIA DALI; what DALI does not take or refuses goes through Pillow.

    Args:
      preprocess: the geometry.
      batch_size: most images in one call.
      device: ``cpu``, or ``cuda`` to decode and resize on the GPU.
    """

    def __init__(self, preprocess: Preprocess, batch_size: int, device: str):
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._device = device
        self._pillow = PillowPreprocessor(preprocess)
        self._pipeline: Any = None

    def __call__(self, images: Sequence[tuple[bytes, Header]], out: Pixels) -> list[ImageError | None]:
        errors: list[ImageError | None] = [None] * len(images)
        left = [i for i, (_, header) in enumerate(images) if not _for_dali(header)]
        for group in _within_budget(images, (i for i, (_, header) in enumerate(images) if _for_dali(header))):
            left += self._decode(images, group, out)
        for i, error in self._pillow.some(images, left, out):
            errors[i] = error
        return errors

    def _decode(self, images: Sequence[tuple[bytes, Header]], chosen: list[int], out: Pixels) -> list[int]:
        """Decodes some of the images; the ones that DALI refused are returned.

        One bad image fails the whole call and breaks the pipeline. Those that Pillow refuses too are taken out at once,
        then, one by one, those that only DALI refuses.
        """
        refused: list[int] = []
        while chosen:
            parts = [region(images[i][1], self._preprocess) for i in chosen]
            try:
                decoded = self._run([images[i][0] for i in chosen], parts)
            except RuntimeError as error:
                self._pipeline = None
                bad = [i for i in chosen if not _pillow_decodes(images[i][0])] if not refused else []
                bad = bad or self._culprits(str(error), chosen)
                refused += bad
                chosen = [i for i in chosen if i not in set(bad)]
                continue
            for i, part, pixels in zip(chosen, parts, decoded, strict=True):
                _place(pixels, part, self._preprocess, out[i])
            break
        return refused

    @staticmethod
    def _culprits(message: str, chosen: list[int]) -> list[int]:
        """DALI names the first sample that it could not decode; if it does not, none of them is taken for good."""
        match = re.search(r"sample #(\d+)", message)
        return [chosen[int(match[1])]] if match and int(match[1]) < len(chosen) else list(chosen)

    def _run(self, encoded: list[bytes], parts: list[Region]) -> Iterator[Pixels]:
        if self._pipeline is None:
            self._pipeline = self._build()
        pipeline = self._pipeline
        pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in encoded])
        pipeline.feed_input("size", [np.array(part.stored_size[::-1], np.float32) for part in parts])
        pipeline.feed_input("start", [np.array((part.box[1], part.box[0]), np.float32) for part in parts])
        pipeline.feed_input("end", [np.array((part.box[3], part.box[2]), np.float32) for part in parts])
        (images,) = pipeline.run()
        if self._device == "cuda":
            images = images.as_cpu()
        return (images.at(i) for i in range(len(parts)))

    def _build(self) -> Any:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        gpu = self._device == "cuda"
        pipeline = Pipeline(
            batch_size=self._batch_size,
            num_threads=os.cpu_count() or 1,
            device_id=0 if gpu else None,
            prefetch_queue_depth=1,
        )
        interpolation = types.INTERP_CUBIC if self._preprocess.interpolation == "bicubic" else types.INTERP_LINEAR
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            size, start, end = (
                fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("size", "start", "end")
            )
            images = fn.decoders.image(
                encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
            )
            images = fn.resize(
                images, size=size, roi_start=start, roi_end=end, interp_type=interpolation, antialias=True
            )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


def _for_dali(header: Header) -> bool:
    return header.format in _DALI_FORMATS and header.mode in _DALI_MODES and header.pixels <= _PIXELS_AT_ONCE


def _within_budget(images: Sequence[tuple[bytes, Header]], chosen: Iterable[int]) -> Iterator[list[int]]:
    """The chosen images, in groups that together stay below ``_PIXELS_AT_ONCE``."""
    group: list[int] = []
    pixels = 0
    for i in chosen:
        header = images[i][1]
        if group and pixels + header.pixels > _PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
        group.append(i)
        pixels += header.pixels
    if group:
        yield group


def _pillow_decodes(data: bytes) -> bool:
    try:
        with _open(data) as image:
            image.load()
    except _DECODER_ERRORS:
        return False
    return True


@functools.cache
def has_dali() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def make_preprocessor(preprocess: Preprocess, decoder: str, batch_size: int, device: str) -> Preprocessor:
    """``decoder`` is ``dali`` or ``pillow``."""
    if decoder == "dali":
        return cast(Preprocessor, DaliPreprocessor(preprocess, batch_size, device))
    return PillowPreprocessor(preprocess)

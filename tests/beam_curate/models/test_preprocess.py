"""Pixels: the same as open_clip's own transform gives, by DALI and by Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from tars import image_bytes, read_members
from torchvision.transforms import Compose

from beam_curate.models.preprocess import ImageError, Preprocess, make_preprocessor, read_header, thumbnail


def expected_pixels(data: bytes, cfg: PreprocessCfg) -> np.ndarray:
    """open_clip's transform up to the conversion to a tensor."""
    geometry = Compose(image_transform_v2(cfg, is_train=False).transforms[:-3])
    return np.asarray(geometry(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def pixels(images: list[bytes], cfg: PreprocessCfg, decoder: str, batch_size: int = 8):
    preprocess = Preprocess.from_open_clip(vars(cfg))
    out = np.zeros((len(images), *preprocess.size, 3), np.uint8)
    headers = [(data, read_header(data, 10**8)) for data in images]
    errors = make_preprocessor(preprocess, decoder, max(batch_size, len(images)), "cpu")(headers, out)
    return out, errors


CONFIGURATIONS = [
    PreprocessCfg(size=224),
    PreprocessCfg(size=(224, 160)),
    PreprocessCfg(size=224, resize_mode="longest", fill_color=7),
    PreprocessCfg(size=(100, 200), resize_mode="longest"),
    PreprocessCfg(size=96, resize_mode="squash", interpolation="bilinear"),
]


@pytest.mark.parametrize("cfg", CONFIGURATIONS, ids=lambda cfg: f"{cfg.resize_mode}-{cfg.size}")
def test_geometry_is_open_clips(shared, decoder, cfg):
    photos = [data for name, data in read_members(shared / "photos" / "00000.tar") if name.endswith(".jpg")][:12]
    out, errors = pixels(photos, cfg, decoder)
    assert errors == [None] * len(photos)
    difference = np.abs(out.astype(int) - np.stack([expected_pixels(photo, cfg) for photo in photos]))
    assert difference.mean() < 0.12
    assert difference.max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(decoder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_bytes(1, size=(300, 200), quality=95, exif=exif)
    header = read_header(data, 10**8)
    assert (header.width, header.height) == ((200, 300) if orientation >= 5 else (300, 200))
    cfg = PreprocessCfg(size=64)
    (out,), _ = pixels([data], cfg, decoder)
    assert np.abs(out.astype(int) - expected_pixels(data, cfg)).max() <= 3


@pytest.mark.parametrize(
    ("format", "mode", "name"),
    [
        ("JPEG", "L", "jpeg"),
        ("JPEG", "CMYK", "jpeg"),
        ("PNG", "RGB", "png"),
        ("PNG", "P", "png"),
        ("PNG", "RGBA", "png"),
        ("PNG", "1", "png"),
        ("WEBP", "RGB", "webp"),
        ("GIF", "P", "gif"),
        ("BMP", "RGB", "bmp"),
        ("TIFF", "RGB", "tiff"),
        ("AVIF", "RGB", "avif"),
    ],
)
def test_formats(decoder, format, mode, name):
    data = image_bytes(2, size=(80, 60), format=format, mode=mode)
    header = read_header(data, 10**8)
    assert (header.format, header.width, header.height) == (name, 80, 60)
    cfg = PreprocessCfg(size=64)
    (out,), errors = pixels([data], cfg, decoder)
    assert errors == [None]
    assert np.abs(out.astype(int) - expected_pixels(data, cfg)).max() <= 3


def test_a_truncated_jpeg_is_refused_and_its_neighbours_keep_their_pixels_bit_for_bit(decoder):
    good = [image_bytes(seed, size=(120, 90)) for seed in range(6)]
    cfg = PreprocessCfg(size=64)
    alone, _ = pixels(good, cfg, decoder)
    broken = image_bytes(9, size=(120, 90))
    out, errors = pixels([*good[:2], broken[: len(broken) // 2], *good[2:4], broken[:-300], *good[4:]], cfg, decoder)
    assert [error is not None for error in errors] == [False, False, True, False, False, True, False, False]
    assert errors[2].reason == "undecodable"
    assert np.array_equal(out[[0, 1, 3, 4, 6, 7]], alone)


def test_a_header_is_enough_to_refuse_an_image():
    with pytest.raises(ImageError) as error:
        read_header(image_bytes(0, size=(64, 48)), 3000)
    assert error.value.reason == "too_many_pixels"
    assert "64 x 48" in error.value.detail
    assert read_header(image_bytes(0, size=(64, 48)), 3072).pixels == 3072


@pytest.mark.parametrize("data", [b"", b"<html>", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0", bytes(1000)])
def test_what_is_no_image_is_undecodable(data):
    with pytest.raises(ImageError) as error:
        read_header(data, 10**8)
    assert error.value.reason == "undecodable"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnails_are_small_and_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_bytes(3, size=(900, 300), exif=exif)
    small = thumbnail(data, 90, 10**6)
    assert small.size == ((30, 90) if orientation >= 5 else (90, 30))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize(small.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_thumbnails_of_any_mode_are_rgb(mode):
    buffer = io.BytesIO()
    Image.new(mode, (40, 20)).save(buffer, "PNG")
    assert thumbnail(buffer.getvalue(), 90, 10**6).mode == "RGB"


def test_thumbnails_of_too_large_and_of_broken_images_are_refused():
    data = image_bytes(1, size=(200, 100))
    for broken, pixels in ((data, 19_999), (data[:-300], 20_000), (b"text", 20_000)):
        with pytest.raises(ImageError):
            thumbnail(broken, 90, pixels)

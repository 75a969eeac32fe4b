"""Everything that real crawls contain: bad images, odd samples, broken tars."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image
from tars import image_bytes

OK = None  # the image is embedded


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3 * 100))) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (279, 4, 8),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + directory + bytes(4)


def decompression_bomb() -> bytes:
    """A small PNG of 20000 x 7000 pixels: 420 MB when decoded."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 7_000)).save(buffer, "PNG")
    return buffer.getvalue()


# 32 x 24 pixels, arithmetic-coded by ``jpegtran -arithmetic``, which Pillow cannot write.
_ARITHMETIC_JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO"
    "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT0//yQARCAAYACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwCTEKi9q3I6n8gtzPM7vDD3jg9X0OKN"
    "RoEWKXeNRATjysOOQJIoVjvgjkFuviiNj5bQ2kxw/EsSof8AVE5YKPs7OXYsL+d1a+5LYHvZuYarJ9qsLsTHRucpF61MWxAxhXR1"
    "O1a+UTIuOkWu8fAM4wLzXlvMeVuaypqeapx6+a6vE/6EL7pELm72vZJels9CnKwVJrisvsuiuK2SUfnDAiSfhTHPsM1K/wD+Ox0/"
    "he+PHRMaLaOyUB3lOhcdaKa7sy9ihcw844EVBqLFMFtU8P/Z"
)


def arithmetic_jpeg() -> bytes:
    return base64.b64decode(_ARITHMETIC_JPEG)


def animated(format: str) -> bytes:
    frames = [Image.open(io.BytesIO(image_bytes(seed, format="PNG"))) for seed in (1, 2, 3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sixteen_bit(mode: str) -> bytes:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, mode)
    return buffer.getvalue()


def images() -> dict[str, tuple[bytes, str | None]]:
    """Encoded images by member name, each with the reason it is rejected for; OK if it is not."""
    photo = image_bytes(1, size=(160, 120), quality=90)
    corrupt = bytearray(image_bytes(2, size=(160, 120), format="PNG"))
    corrupt[len(corrupt) // 2] ^= 0xFF
    found: dict[str, tuple[bytes, str | None]] = {
        "random.jpg": (np.random.default_rng(0).bytes(5000), "undecodable"),
        "empty.png": (b"", "undecodable"),
        "page.jpg": (b"<!doctype html><html><body>404</body></html>", "undecodable"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "undecodable"),
        "document.jpg": (b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj", "undecodable"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(rm) run\n", "undecodable"),
        "corrupt.png": (bytes(corrupt), "undecodable"),
        "wrong_extension.png": (photo, OK),
        "one_pixel.png": (image_bytes(3, size=(1, 1), format="PNG"), OK),
        "ribbon.png": (image_bytes(4, size=(3000, 8), format="PNG"), OK),
        "sixteen_bit.png": (sixteen_bit("PNG"), OK),
        "sixteen_bit_tiff.tiff": (sixteen_bit("TIFF"), OK),
        "palette.png": (image_bytes(5, format="PNG", mode="P"), OK),
        "rgba.png": (image_bytes(6, format="PNG", mode="RGBA"), OK),
        "bitmap.png": (image_bytes(7, format="PNG", mode="1"), OK),
        "gray.jpg": (image_bytes(8, mode="L"), OK),
        "cmyk.jpg": (image_bytes(9, mode="CMYK"), OK),
        "progressive.jpg": (image_bytes(10, size=(160, 120), progressive=True), OK),
        "arithmetic.jpg": (arithmetic_jpeg(), OK),
        "animated_gif.gif": (animated("GIF"), OK),
        "animated_webp.webp": (animated("WEBP"), OK),
        "animated_png.png": (animated("PNG"), OK),
        "many_pages.tiff": (animated("TIFF"), OK),
        "avif.avif": (image_bytes(11, format="AVIF"), OK),
        "bmp.bmp": (image_bytes(12, format="BMP"), OK),
        "webp.webp": (image_bytes(13, format="WEBP"), OK),
        "claims_too_much.png": (png_header(60_000, 60_000), "too_many_pixels"),
        "claims_too_much_tiff.tiff": (tiff_header(60_000, 60_000), "too_many_pixels"),
        "bomb.png": (decompression_bomb(), "too_many_pixels"),
        "claims_more_than_it_has.png": (png_header(4000, 4000), "undecodable"),
    }
    for tenth in range(10):
        found[f"cut_at_{tenth}_tenths.jpg"] = (photo[: len(photo) * tenth // 10], "undecodable")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"orientation_{orientation}.jpg"] = (image_bytes(14, size=(60, 40), exif=exif), OK)
    return found


def big_json(size: int) -> bytes:
    """A JSON document of about this many bytes whose objects would take many times as much."""
    return b'{"caption": "big", "rows": [' + b"[1],[]," * (size // 7) + b"0]}"


def samples() -> list[tuple[str, bytes]]:
    """Members of odd samples; the comments say how many samples they are, and what becomes of them."""
    image = image_bytes(20)
    return [
        ("text_only.txt", b"no image"),  # no_image
        ("two.jpg", image),  # one sample, its first image counts
        ("two.png", image_bytes(21, format="PNG")),
        ("dotted.v2.final.jpg", image_bytes(22)),
        ("SHOUT.JPEG", image_bytes(23)),
        ("SHOUT.TXT", b"SHOUT"),
        ("apart.jpg", image_bytes(24)),
        ("between.jpg", image_bytes(25)),
        ("apart.txt", b"not adjacent"),  # split_sample
        ("twice.jpg", image_bytes(26)),
        ("twice.jpg", image_bytes(27)),  # another sample with the same key
        ("dir/sub dir/with spaces.jpg", image_bytes(28)),
        ("n" * 300 + ".jpg", image_bytes(29)),
        ("日本語.jpg", image_bytes(30)),
        ("../../../../tmp/beam-curate-escaped.jpg", image_bytes(31)),
        ("/tmp/beam-curate-absolute.jpg", image_bytes(32)),
        ("control\x01\x1b[2Jchars.jpg", image_bytes(33)),
        ("line\nfeed.jpg", image_bytes(34)),
        ("CON.jpg", image_bytes(35)),
        ("latin.jpg", image_bytes(36)),
        ("latin.txt", b"caf\xe9 %s {0} <b>"),
        ("notjson.jpg", image_bytes(37)),
        ("notjson.json", b"{not json"),
        ("list.jpg", image_bytes(38)),
        ("list.json", b"[1, 2, 3]"),
        ("nan.jpg", image_bytes(39)),
        ("nan.json", b'{"caption": "from json", "similarity": NaN}'),
        ("huge.jpg", image_bytes(40)),
        ("huge.json", big_json(3 << 20)),
    ]


SAMPLE_REASONS = {"no_image": 1, "split_sample": 1}
SAMPLES_READ = 22


def tar_bytes(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special_members() -> bytes:
    """Directories, links and devices around one good sample; the links point at files outside."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, target in (
            ("folder", tarfile.DIRTYPE, ""),
            ("passwd.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("climb.jpg", tarfile.SYMTYPE, "../../../../etc/hostname"),
            ("hard.jpg", tarfile.LNKTYPE, "/etc/passwd"),
            ("device.jpg", tarfile.CHRTYPE, ""),
            ("pipe.jpg", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name, data in (("good.jpg", image_bytes(50)), ("inner.tar", tar_bytes([("x.jpg", image_bytes(51))]))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sparse_member() -> bytes:
    """A GNU sparse file that claims to be 1 TB large, then a good sample."""
    info = tarfile.TarInfo("sparse.jpg")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + tar_bytes([("good.jpg", image_bytes(52))])


def lying_size() -> bytes:
    """A member that claims 8 GB in a file of a few KB."""
    data = bytearray(tar_bytes([("good.jpg", image_bytes(53)), ("liar.jpg", b"x" * 100)], tarfile.USTAR_FORMAT))
    at = data.index(b"liar.jpg")
    data[at + 124 : at + 136] = b"%011o\0" % (8 << 30 >> 1)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def tars() -> dict[str, tuple[bytes, int, dict[str, int], bool]]:
    """Files by name: the bytes, how many images are read, what for some are rejected, and whether the tar itself is."""
    two = tar_bytes([("a.jpg", image_bytes(54)), ("b.jpg", image_bytes(55))], tarfile.USTAR_FORMAT)
    second = two.index(b"b.jpg")
    end = len(two.rstrip(b"\0")) // 512 * 512 + 512
    long_name = "long/" * 30 + "name" * 30
    many = tar_bytes([(f"{i}.txt", b"") for i in range(2000)], tarfile.USTAR_FORMAT)
    return {
        "00_empty_file.tar": (b"", 0, {}, True),
        "01_not_a_tar.tar": (b"<html>" * 500, 0, {}, True),
        "02_no_members.tar": (tar_bytes([]), 0, {}, False),
        "03_cut_in_header.tar": (two[: second + 100], 1, {}, True),
        "04_cut_in_payload.tar": (two[: second + 700], 1, {}, True),
        "05_no_end_blocks.tar": (two[:end], 2, {}, True),
        "06_trailing_garbage.tar": (two + b"garbage" * 100, 2, {}, False),
        "07_pax_names.tar": (tar_bytes([(f"{long_name}.jpg", image_bytes(56))], tarfile.PAX_FORMAT), 1, {}, False),
        "08_gnu_names.tar": (tar_bytes([(f"{long_name}.jpg", image_bytes(57))], tarfile.GNU_FORMAT), 1, {}, False),
        "09_special_members.tar": (special_members(), 7, {"no_image": 6}, False),
        "10_sparse.tar": (sparse_member(), 2, {"no_image": 1}, False),
        "11_lying_size.tar": (lying_size(), 1, {}, True),
        "12_many_empty_members.tar": (many, 2000, {"no_image": 2000}, False),
        "13_cut.tar.gz": (gzip.compress(two, mtime=0)[:-300], 1, {}, True),
        "14_not_gzip.tar.gz": (two, 0, {}, True),
        "15_samples.tar": (tar_bytes(samples()), SAMPLES_READ, SAMPLE_REASONS, False),
        "16_images.tar": (
            tar_bytes([(name, data) for name, (data, _) in images().items()]),
            len({name.partition(".")[0] for name in images()}),
            {},
            False,
        ),
        "17_same_keys_again.tar": (two, 2, {}, False),
        "18_json_as_strings.tar": (
            tar_bytes([("s.jpg", image_bytes(58)), ("s.json", json.dumps("text").encode())]),
            1,
            {},
            False,
        ),
    }

"""Small copies of sampled images, read again from the output's tars or, for rejected ones, from the source tars."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from beam_curate.formats import files
from beam_curate.formats.store import EmbeddingStore
from beam_curate.formats.tar import MAX_IMAGE_BYTES, TarError, TarReader, iter_samples
from beam_curate.models.preprocess import ImageError, thumbnail
from beam_curate.report.facts import READERS, Picture, stored_rows

SIDE = 176
# Of the encoded thumbnail; base64 makes it a third larger.
MOST_BYTES = 9_000
_QUALITIES = (75, 55, 35, 15)
# Without an embedding store, how far into a source tar a rejected image is looked for.
_FARTHEST = 1 << 30


def load(
    output_dir: str, pictures: Iterable[Picture], store: EmbeddingStore | None, max_pixels: int
) -> dict[Picture, str | None]:
    """``data:`` URIs of thumbnails, none above ``MOST_BYTES``; None for what is not there any more as it was.

    Raises:
      CurateError: the storage fails.
    """
    by_tar: dict[tuple[bool, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_tar[picture.kept, picture.place[0]].append(picture)

    # One picture is decoded at a time: decoded, it can be a hundred times as large.
    decoding = threading.Lock()

    def read(item: tuple[tuple[bool, str], list[Picture]]) -> dict[Picture, str | None]:
        (kept, tar), wanted = item
        wanted = list(dict.fromkeys(wanted))
        found: dict[Picture, str | None] = dict.fromkeys(wanted)
        try:
            with files.open_tar(files.join(output_dir, tar) if kept else tar) as file:
                images = _members(file, wanted) if kept else _samples(file, wanted, store)
                for picture, image in images:
                    if hashlib.sha256(image).hexdigest() == picture.sha256:
                        with decoding:
                            found[picture] = _data_uri(image, max_pixels)
        except (files.UnavailableError, TarError, EOFError):
            pass  # what was found until then is shown, for the rest there is a placeholder
        return found

    with ThreadPoolExecutor(READERS) as pool:
        thumbnails: dict[Picture, str | None] = {}
        for found in pool.map(read, by_tar.items()):
            thumbnails |= found
    return thumbnails


def _members(file: BinaryIO, wanted: list[Picture]) -> Iterator[tuple[Picture, bytes]]:
    """The images of an output tar, by the names of their members."""
    left = {picture.place[1]: picture for picture in wanted}
    reader = TarReader(file)
    for member in reader:
        picture = left.pop(member.name, None)
        if picture is not None and member.size <= MAX_IMAGE_BYTES:
            yield picture, b"".join(reader.chunks())
        if not left:
            return


def _samples(file: BinaryIO, wanted: list[Picture], store: EmbeddingStore | None) -> Iterator[tuple[Picture, bytes]]:
    """The images of a source tar, by the index of their sample. A store says where they are, else all is read."""
    left = {picture.place[1]: picture for picture in wanted}
    stored = stored_rows(store, wanted[0].place[0], ("index", "member", "offset", "size"))
    spans = [row for row in stored if row["index"] in left and row["offset"] is not None]
    for row in sorted(spans, key=lambda row: int(row["offset"])):
        file.seek(row["offset"])
        reader = TarReader(file, row["offset"])
        for member in reader:
            if member.name == row["member"] and member.size <= MAX_IMAGE_BYTES:
                yield left.pop(row["index"]), b"".join(reader.chunks())
                break
            if reader.member_end >= row["offset"] + row["size"]:
                break
    if spans or not left:
        return
    for index, sample in enumerate(iter_samples(file)):
        picture = left.pop(index, None)
        if picture is not None and sample.image is not None:
            yield picture, sample.image
        if not left or sample.offset > _FARTHEST:
            return


def _data_uri(image: bytes, max_pixels: int) -> str | None:
    try:
        small = thumbnail(image, SIDE, max_pixels)
    except ImageError:
        return None
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= MOST_BYTES:
                return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        small = small.resize((max(small.width // 2, 1), max(small.height // 2, 1)))

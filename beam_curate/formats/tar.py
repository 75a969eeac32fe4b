"""Tar files: a strict streaming reader, WebDataset samples, and a deterministic writer.

The reader trusts nothing. It never seeks, never reads more than it was asked to, follows no link, and tells a tar that
ends properly from one that was cut, which ``tarfile`` in stream mode does not.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext

BLOCK = 512
_CHUNK = 1 << 20
# A PAX or GNU name header holds one path and a few numbers; a larger one is not a name.
_MAX_EXTENSION_HEADER = 1 << 20
_END_OF_ARCHIVE = b"\0" * 2 * BLOCK
# The last extension of a member that is an image, as Pillow and DALI name their formats.
_DECODABLE = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "gif",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "avif",
    "jp2",
    "j2k",
    "ppm",
)
IMAGE_EXTENSIONS = frozenset((*_DECODABLE, "pgm", "pbm", "pnm", "heic", "heif", "jxl", "ico", "tga"))
# A larger image is not read into memory.
MAX_IMAGE_BYTES = 128 << 20
_DECOMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
_LINK_TYPES = {b"1": "hard link", b"2": "symbolic link"}
_DEVICE_TYPES = {b"3": "character device", b"4": "block device", b"6": "FIFO"}
# USTAR splits a name at a slash into 155 + 100 bytes.
_USTAR_NAME = 100
_USTAR_PREFIX = 155


class TarError(Exception):
    """The rest of this tar cannot be read. ``at_start`` says that nothing of it could."""

    def __init__(self, message: str, at_start: bool = False):
        super().__init__(message)
        self.at_start = at_start


@dataclass(frozen=True)
class Member:
    """A tar member. ``offset`` is where its first header (also a PAX or GNU name header) begins, in bytes.

    ``kind`` is empty for a regular file, else says what it is; only regular files have a payload here.
    """

    name: str
    offset: int
    size: int
    kind: str = ""

    @property
    def is_file(self) -> bool:
        return not self.kind


class TarReader:
    """Iterates over the members of a tar from the file's current position, which is at a header.

    After a regular member, ``chunks`` gives its payload once; what is not taken is read over. Directories are left out.

    Raises:
      TarError: where the tar is not a tar, is cut, or ends without its end-of-archive blocks.
    """

    def __init__(self, file: BinaryIO, position: int = 0):
        self._file = file
        self._start = self.position = position
        self._payload = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while True:
            self._skip()
            member = self._next_member()
            if member is None:
                return
            if member.kind != "directory":
                yield member

    def chunks(self) -> Iterator[bytes]:
        """The payload of the member just returned, in chunks of at most 1 MiB."""
        while self._payload:
            wanted = min(self._payload, _CHUNK)
            data = self._read(wanted)
            self._payload -= len(data)
            if len(data) < wanted:
                raise TarError(f"cut inside a member's data at byte {self.position}")
            yield data

    @property
    def member_end(self) -> int:
        """Where the member just returned ends, its padding included."""
        return self.position + self._payload + self._padding

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more
        except _DECOMPRESSION_ERRORS as error:
            raise TarError(f"cannot decompress after byte {self.position}: {error}", self.position == 0) from error
        self.position += len(data)
        return data

    def _skip(self) -> None:
        for _ in self.chunks():
            pass
        if self._padding:
            padding, self._padding = self._padding, 0
            if len(self._read(padding)) < padding:
                raise TarError(f"cut inside a member's padding at byte {self.position}")

    def _set_payload(self, size: int) -> None:
        self._payload, self._padding = size, -size % BLOCK

    def _next_member(self) -> Member | None:
        offset = self.position
        pax: dict[str, str] = {}
        long_name: str | None = None
        while True:
            header = self._read_header()
            if header is None:
                if pax or long_name is not None:
                    raise TarError(f"a name header without a member at byte {offset}")
                return None
            kind, name, size = header
            if kind in (b"x", b"X", b"g", b"L", b"K"):
                if size > _MAX_EXTENSION_HEADER:
                    raise TarError(f"a name header of {size} bytes at byte {offset}")
                self._set_payload(size)
                data = b"".join(self.chunks())
                self._skip()
                if kind in (b"x", b"X"):
                    pax = _parse_pax(data, offset)
                elif kind == b"L":
                    long_name = _text(data)
                continue
            if long_name is not None:
                name = long_name
            name = pax.get("GNU.sparse.name") or pax.get("path") or name
            if "size" in pax:
                size = _pax_size(pax["size"], offset)
            sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in pax)
            return self._member(kind, name, offset, size, sparse)

    def _member(self, kind: bytes, name: str, offset: int, size: int, sparse: bool) -> Member:
        if kind == b"5" or (kind in (b"0", b"\0") and name.endswith("/")):
            return Member(name, offset, 0, "directory")
        if kind in _LINK_TYPES:
            return Member(name, offset, 0, _LINK_TYPES[kind])
        if kind in _DEVICE_TYPES:
            return Member(name, offset, 0, _DEVICE_TYPES[kind])
        self._set_payload(size)
        if sparse:
            return Member(name, offset, size, "sparse file")
        if kind in (b"0", b"\0", b"7"):
            return Member(name, offset, size)
        return Member(name, offset, size, f"member of type {kind!r}")

    def _read_header(self) -> tuple[bytes, str, int] | None:
        """Type, name and payload size of the next header; None at a proper end of the archive."""
        at = self.position
        at_start = at == self._start
        block = self._read(BLOCK)
        if not block:
            message = "the file is empty" if at_start else f"no end-of-archive blocks at byte {at}"
            raise TarError(message, at_start)
        if len(block) < BLOCK:
            raise TarError(
                "not a tar: shorter than one header" if at_start else f"cut inside a header at byte {at}", at_start
            )
        if not block.strip(b"\0"):
            return None
        if not _checksum_matches(block):
            raise TarError("not a tar: no valid header" if at_start else f"no valid header at byte {at}", at_start)
        try:
            size = _number(block[124:136])
        except ValueError as error:
            raise TarError(f"no valid member size at byte {at}", at_start) from error
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = f"{_text(block[345:500])}/{name}"
        kind = block[156:157]
        extended = block[482] if kind == b"S" else 0
        while extended:
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise TarError(f"cut inside a header at byte {at}")
            extended = block[504]
        return kind, name, size


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def _number(field: bytes) -> int:
    """A numeric header field: octal digits, or base 256 when the first byte's high bit is set (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ValueError("not octal")
    return int(digits or b"0", 8)


def _checksum_matches(block: bytes) -> bool:
    try:
        stated = _number(block[148:156])
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    return stated == sum(rest) or stated == sum(byte - 256 if byte > 127 else byte for byte in rest)


def _parse_pax(data: bytes, offset: int) -> dict[str, str]:
    """PAX records, each ``length key=value\\n`` (POSIX.1-2001, pax interchange format)."""
    records = {}
    position = 0
    while position < len(data) and data[position] != 0:
        match = re.compile(rb"([0-9]{1,8}) ([^=]+)=").match(data, position)
        if match is None:
            raise TarError(f"a broken PAX header at byte {offset}")
        end = position + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
            raise TarError(f"a broken PAX header at byte {offset}")
        records[_text(match[2])] = _text(data[match.end() : end - 1])
        position = end
    return records


def _pax_size(value: str, offset: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise TarError(f"a broken PAX header at byte {offset}")
    return int(value)


@dataclass(frozen=True)
class TarSample:
    """Adjacent members with one key, WebDataset's sample.

    ``image`` and ``image_member`` are those of the first member that is an image by its name; None if there is none, or
    if it has more than ``MAX_IMAGE_BYTES``, which ``others`` then says.
    ``others`` says what the members without a payload are. ``offset``, ``size`` and ``digest`` as in
    ``records.Sample``.
    """

    key: str
    names: tuple[str, ...]
    others: tuple[str, ...]
    image_member: str | None
    image: bytes | None
    offset: int
    size: int
    digest: bytes


class SampleDigest:
    """SHA-256 over a sample's members in order: each one's name, size and bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def member(self, name: str, size: int) -> None:
        encoded = name.encode("utf-8")
        self._hash.update(b"%d %d " % (len(encoded), size) + encoded)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def copy(self) -> SampleDigest:
        twin = SampleDigest()
        twin._hash = self._hash.copy()
        return twin

    def digest(self) -> bytes:
        return self._hash.digest()


def split_name(name: str) -> tuple[str, str] | None:
    """A member's key and extension by WebDataset's rule; None where the name has no key (no dot, or a leading one)."""
    # The rule is a regular expression that stops at a line feed. NUL cannot stand in a member's name.
    key, extension = base_plus_ext(name.replace("\n", "\0"))
    return None if key is None or extension is None else (key.replace("\0", "\n"), extension.replace("\0", "\n"))


def is_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


class _Group:
    """The members of the sample being read."""

    def __init__(self, key: str, offset: int):
        self.key, self.offset, self.end = key, offset, offset
        self.extensions: set[str] = set()
        self.names: list[str] = []
        self.others: list[str] = []
        self.image_member: str | None = None
        self.image: bytes | None = None
        self.digest = SampleDigest()

    def read(self, member: Member, extension: str, reader: TarReader) -> None:
        """Takes in a member; only a whole one counts."""
        self.extensions.add(extension)
        if not member.is_file:
            self.others.append(f"{member.name} is a {member.kind}")
            self.end = reader.member_end
            return
        digest, end = self.digest.copy(), reader.member_end
        digest.member(member.name, member.size)
        keep = self.image is None and is_image_name(member.name)
        too_large = keep and member.size > MAX_IMAGE_BYTES
        keep = keep and not too_large
        image = io.BytesIO()
        for chunk in reader.chunks():
            digest.update(chunk)
            if keep:
                image.write(chunk)
        self.digest = digest
        self.names.append(member.name)
        if too_large:
            self.others.append(f"{member.name} has {member.size} bytes, more than {MAX_IMAGE_BYTES}")
        if keep:
            self.image_member, self.image = member.name, image.getvalue()
        self.end = end

    def sample(self) -> TarSample:
        return TarSample(
            self.key,
            tuple(self.names),
            tuple(self.others),
            self.image_member,
            self.image,
            self.offset,
            self.end - self.offset,
            self.digest.digest(),
        )


def iter_samples(file: BinaryIO) -> Iterator[TarSample]:
    """The samples of a tar, in order.

    Adjacent members with the same key are a sample; an extension that the sample already has begins another one, as
    WebDataset readers refuse it. Members whose name gives no key are read over. When the tar breaks off, the whole
    members of the last sample are given before the error.

    Raises:
      TarError: after the last sample, where the tar cannot be read on.
    """
    reader = TarReader(file)
    group: _Group | None = None
    try:
        for member in reader:
            names = split_name(member.name)
            if names is None:
                continue
            key, extension = names[0], names[1].lower()
            if group is None or key != group.key or extension in group.extensions:
                if group is not None:
                    yield group.sample()
                group = _Group(key, member.offset)
            group.read(member, extension, reader)
    except TarError:
        if group is not None and (group.names or group.others):
            yield group.sample()
        raise
    if group is not None:
        yield group.sample()


def safe_key(key: str, names: Iterable[str]) -> str:
    """A source key as a relative file name that any member of its sample can be stored under in USTAR.

    Never absolute, without ``.`` and ``..`` parts, backslashes or control characters, and short enough to take a suffix
    of nine bytes and the longest extension among ``names``.
    """
    parts = [part for part in re.sub(r"[\x00-\x1f\x7f\\\ufffd]", "_", key).split("/") if part not in ("", ".", "..")]
    longest = max((len(split[1].encode()) for name in names if (split := split_name(name))), default=0)
    base = _shorten(parts[-1] if parts else "_", max(_USTAR_NAME - 10 - longest, 24))
    directory = "/".join(parts[:-1])
    if len(directory.encode()) > _USTAR_PREFIX:
        directory = _shorten(directory, _USTAR_PREFIX).replace("/", "_")
    return f"{directory}/{base}" if directory else base


def _shorten(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8; what is cut is replaced by a digest of the whole."""
    encoded = text.encode("utf-8")
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 9].decode("utf-8", "ignore") + "-" + hashlib.sha256(encoded).hexdigest()[:8]


def member_name(stem: str, source_name: str) -> str:
    """The name under which a sample's member is written: the new key and the source's extension."""
    split = split_name(source_name)
    extension = split[1] if split else ""
    extension = re.sub(r"[\x00-\x1f\x7f\\]", "_", extension)
    base = len(stem.rpartition("/")[2].encode())
    return f"{stem}.{_shorten(extension, max(_USTAR_NAME - base - 1, 9))}"


def _library_header(name: str, size: int) -> bytes:
    """A USTAR header with the fields that ``webdataset.TarWriter(mtime=0)`` gives its members."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o444
    info.uname = info.gname = "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


# A header in its parts: name, mode and owner, size, time, checksum, the rest. Only three of them ever differ.
_BLANK = _library_header("", 0)
_OWNER, _TIME, _REST = _BLANK[_USTAR_NAME:124], _BLANK[136:148], _BLANK[156:]
_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST) + sum(b" " * 8)  # the checksum counts itself as spaces


def _header(name: str, size: int) -> bytes:
    """What ``_library_header`` gives, without building it anew for every member."""
    encoded, digits = name.encode(errors="surrogateescape"), b"%011o\0" % size
    if len(encoded) > _USTAR_NAME or len(digits) > 12:
        return _library_header(name, size)
    checksum = _SUM + sum(encoded) + sum(digits)
    return encoded.ljust(_USTAR_NAME, b"\0") + _OWNER + digits + _TIME + b"%06o\0 " % checksum + _REST


class TarShardWriter:
    """Writes a USTAR file whose bytes depend on names and contents alone.

    Header fields are those of ``webdataset.TarWriter(mtime=0)``: mode 0444, user and group ``bigdata``, ids 0. Unlike
    it, members keep the order in which they come and need not be in memory whole. ``members`` are those written so far.
    """

    def __init__(self, file: Any):
        self._file = file
        self._size = 0
        self.members: list[Member] = []

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Appends one member whose payload is ``size`` bytes."""
        self.members.append(Member(name, self._size, size))
        self._write(_header(name, size))
        written = 0
        for chunk in chunks:
            self._write(chunk)
            written += len(chunk)
        if written != size:
            raise TarError(f"{name}: {written} bytes instead of {size}")
        self._write(b"\0" * (-size % BLOCK))

    def close(self) -> None:
        self._write(_END_OF_ARCHIVE)
        self._write(b"\0" * (-self._size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)


def copy_sample(
    file: BinaryIO,
    offset: int,
    size: int,
    rename: Callable[[str], str],
    writer: TarShardWriter,
    keep: Callable[[str], bool],
) -> tuple[bytes, dict[str, bytes]]:
    """Copies the sample whose span begins at the file's position.

    Returns:
      The digest over what was read, to be compared with the one taken when the sample was found, and the payloads of
      the members whose source name ``keep`` asks for.

    Raises:
      TarError: where the span no longer holds a sample.
    """
    digest = SampleDigest()
    kept: dict[str, bytes] = {}
    reader = TarReader(file, offset)
    if size == 0:
        return digest.digest(), kept
    for member in reader:
        if member.is_file and split_name(member.name) is not None:
            digest.member(member.name, member.size)
            pieces = io.BytesIO() if keep(member.name) else None
            writer.add(rename(member.name), member.size, _tee(reader.chunks(), digest, pieces))
            if pieces is not None:
                kept.setdefault(member.name, pieces.getvalue())
        if reader.member_end >= offset + size:
            break
    return digest.digest(), kept


def _tee(chunks: Iterable[bytes], digest: SampleDigest, pieces: io.BytesIO | None) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        if pieces is not None:
            pieces.write(chunk)
        yield chunk

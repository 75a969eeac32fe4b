"""Files on any Beam file system: read, hash, list, and publish whole."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from beam_curate.errors import CurateError

_CHUNK = 1 << 20
_TEMPORARY = "_tmp."
# On these an object appears when it is closed, so a temporary name would only cost a copy.
_OBJECT_STORES = ("gs", "s3", "azfs")


class HashingWriter:
    """A write-only file that counts and hashes what passes: ``size`` in bytes, ``sha256`` in hex.

    Raises:
      CurateError: from ``write`` and ``close``, where the storage refuses.
    """

    def __init__(self, file: BinaryIO, uri: str):
        self._file = file
        self._uri = uri
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        with _refused(self._uri):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with _refused(self._uri):
                self._file.close()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def join(directory: str, *names: str) -> str:
    return FileSystems.join(directory, *names)


def open_read(uri: str) -> BinaryIO:
    return FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)


def open_tar(uri: str) -> BinaryIO:
    """The decompressed bytes of a tar. Seeking forward works for ``.gz`` too, by reading on."""
    raw = open_read(uri)
    if uri.lower().endswith((".gz", ".tgz")):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    return raw


def read_bytes(uri: str) -> bytes:
    with open_read(uri) as file:
        return file.read()


def exists(uri: str) -> bool:
    return bool(FileSystems.exists(uri))


def find(pattern: str) -> list[FileMetadata]:
    """The files that match a glob, sorted by path; none is not an error."""
    found = FileSystems.match([pattern])[0].metadata_list
    return sorted((file for file in found if not _is_local_directory(file.path)), key=lambda file: file.path)


def _is_local_directory(path: str) -> bool:
    # Beam's local file system matches a directory's own name; the others know only files.
    return FileSystems.get_scheme(path) is None and os.path.isdir(path)


def list_tree(directory: str) -> list[str]:
    """Paths of all files below a directory, relative to it, sorted."""
    prefix = directory.rstrip("/") + "/"
    try:
        return [str(metadata.path)[len(prefix) :] for metadata in find(prefix + "**")]
    except BeamIOError:
        return []


def measure(uri: str) -> tuple[int, str]:
    """Size in bytes and hex SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open_read(uri) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def delete(uris: list[str]) -> None:
    if uris:
        FileSystems.delete(uris)


def is_temporary(uri: str) -> bool:
    """Whether a file is one that ``publish`` had not finished."""
    return posixpath.basename(uri).startswith(_TEMPORARY)


@contextlib.contextmanager
def _refused(uri: str) -> Iterator[None]:
    """Names the file when storage is full, read-only or out of reach."""
    try:
        yield
    except (OSError, BeamIOError) as error:
        raise CurateError(f"cannot write {uri}: {error}") from error


@contextlib.contextmanager
def publish(uri: str) -> Iterator[HashingWriter]:
    """Writes a file that appears under ``uri`` whole or not at all; an older one is replaced.

    A file system with directories gets a temporary name beside the target and a rename.

    Raises:
      CurateError: the storage refuses.
    """
    directory, name = FileSystems.split(uri)
    in_place = FileSystems.get_scheme(uri) in _OBJECT_STORES
    target = uri if in_place else join(directory, f"{_TEMPORARY}{uuid.uuid4().hex[:12]}.{name}")
    with _refused(uri):
        file = FileSystems.create(target, compression_type=CompressionTypes.UNCOMPRESSED)
    writer = HashingWriter(file, uri)
    try:
        yield writer
        writer.close()
        if not in_place:
            with _refused(uri):
                FileSystems.rename([target], [uri])
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        with contextlib.suppress(Exception):
            FileSystems.delete([target])
        raise


def cache_dir() -> str:
    """Where downloads are kept: ``BEAM_CURATE_CACHE``, else ``~/.cache/beam_curate``."""
    return os.environ.get("BEAM_CURATE_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "beam_curate")

"""Files on any Beam file system: read, hash, list, and publish whole."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils import retry

from beam_curate.errors import CurateError

GLOB_CHARACTERS = "*?["
_CHUNK = 1 << 20
_TEMPORARY = "_tmp."
# On these an object appears when it is closed, so a temporary name would only cost a copy.
_OBJECT_STORES = ("gs", "s3")
_READ_RETRIES, _FIRST_DELAY_SECONDS = 3, 0.2

_logger = logging.getLogger(__name__)


class UnavailableError(CurateError):
    """There is no such file, or it may not be read."""


class _Reading(io.RawIOBase):
    """A file open for reading, whose errors name it. Where reading fails it is opened again, at the same place."""

    def __init__(self, uri: str):
        self._uri = uri
        self._file: Any = None
        self._position = 0
        self._attempt(lambda _: None)

    @retry.with_exponential_backoff(
        num_retries=_READ_RETRIES,
        initial_delay_secs=_FIRST_DELAY_SECONDS,
        logger=_logger.debug,
        retry_filter=lambda error: not isinstance(error, UnavailableError),
    )
    def _attempt(self, call: Callable[[Any], Any]) -> Any:
        with _storage("read", self._uri):
            if self._file is None:
                self._file = FileSystems.open(self._uri, compression_type=CompressionTypes.UNCOMPRESSED)
                self._file.seek(self._position)
            try:
                return call(self._file)
            except Exception:
                file, self._file = self._file, None
                with contextlib.suppress(Exception):
                    file.close()
                raise

    def readinto(self, buffer: Any) -> int:
        count: int = self._attempt(lambda file: file.readinto(buffer))
        self._position += count
        return count

    def readall(self) -> bytes:
        data: bytes = self._attempt(lambda file: file.read())
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._attempt(lambda file: file.seek(offset, whence))
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


class HashingWriter:
    """A write-only file that counts and hashes what passes: ``size`` in bytes and, once closed, ``sha256`` in hex.

    What passes is kept until there is 1 MiB of it.

    Raises:
      CurateError: from ``write`` and ``close``, where the storage refuses.
    """

    def __init__(self, file: BinaryIO, uri: str):
        self._file = file
        self._uri = uri
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_size = 0
        self.size = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        self._pending.append(bytes(data))
        self._pending_size += len(data)
        self.size += len(data)
        if self._pending_size >= _CHUNK:
            self._pass_on()
        return len(data)

    def _pass_on(self) -> None:
        data = b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        self._hash.update(data)
        with _storage("write", self._uri):
            self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Does nothing: the file is whole only when it is closed."""

    def close(self) -> None:
        if not self.closed:
            self._pass_on()
            with _storage("write", self._uri):
                self._file.close()
            self.closed = True

    def abandon(self) -> None:
        """Closes the file so that on an object store nothing appears."""
        if self.closed:
            return
        self.closed = True
        if hasattr(self._file, "terminate"):  # google-cloud-storage's writer
            self._file.terminate()
            return
        uploader = getattr(getattr(self._file, "raw", None), "_uploader", None)
        if uploader is not None:  # Beam's writer for S3, which completes an upload only if it met no error
            uploader.last_error, uploader.buffer = CurateError(f"abandoned {self._uri}"), b""
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
    """Opens a file. Reads of less than 1 MiB are served from a buffer.

    Raises, as reading does too:
      UnavailableError: it is not there, or may not be read.
      CurateError: the storage fails.
    """
    return cast(BinaryIO, io.BufferedReader(_Reading(uri), _CHUNK))


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
    with _storage("look for", uri):
        return bool(FileSystems.exists(uri))


def checksum(uri: str) -> str:
    """What the storage knows of a file's content; of which kind is the storage's affair."""
    with _storage("read", uri):
        return str(FileSystems.checksum(uri))


def is_glob(path: str) -> bool:
    """Whether Beam's file systems take a path for a pattern."""
    return any(character in path for character in GLOB_CHARACTERS)


def find(pattern: str) -> list[FileMetadata]:
    """The files that match a glob, sorted by path; none is not an error."""
    with _storage("list", pattern):
        found = FileSystems.match([pattern])[0].metadata_list
    return sorted((file for file in found if not _is_local_directory(file.path)), key=lambda file: file.path)


def _is_local_directory(path: str) -> bool:
    # Beam's local file system matches a directory's own name; the others know only files.
    return FileSystems.get_scheme(path) is None and os.path.isdir(path)


def list_tree(directory: str) -> list[str]:
    """Paths of all files below a directory, relative to it, sorted."""
    prefix = directory.rstrip("/") + "/"
    return [str(metadata.path)[len(prefix) :] for metadata in find(prefix + "**")]


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
        with _storage("delete", uris[0]):
            FileSystems.delete(uris)


def is_temporary(uri: str) -> bool:
    """Whether a file is one that ``publish`` had not finished."""
    return posixpath.basename(uri).startswith(_TEMPORARY)


def unfinished(uri: str) -> list[str]:
    """What processes that were killed while they published this file have left beside it."""
    directory, name = FileSystems.split(uri)
    return [file.path for file in find(join(directory, f"{_TEMPORARY}*.{name}"))]


@contextlib.contextmanager
def _storage(action: str, uri: str) -> Iterator[None]:
    """Names the file when a call to the storage fails. The clients' errors have no class in common."""
    try:
        yield
    except CurateError:
        raise
    except Exception as error:
        cause = _innermost(error)
        status = getattr(cause, "code", None)
        absent = isinstance(cause, _ABSENT) or status in _ABSENT_STATUS
        advice = "; see that these credentials may use the bucket" if status in _REFUSED_STATUS else ""
        raise (UnavailableError if absent else CurateError)(f"cannot {action} {uri}: {cause}{advice}") from error


def _innermost(error: Exception) -> Exception:
    """What a client raised, out of the collections that Beam's file systems put it into."""
    while isinstance(error, BeamIOError) and error.exception_details:
        details = error.exception_details
        inner = next(iter(details.values())) if isinstance(details, dict) else details
        if not isinstance(inner, Exception):
            break
        error = inner
    return error


_ABSENT = (FileNotFoundError, PermissionError, IsADirectoryError)
_REFUSED_STATUS = (401, 403)  # HTTP
_ABSENT_STATUS = (403, 404)


@contextlib.contextmanager
def publish(uri: str, mime_type: str = "application/octet-stream") -> Iterator[HashingWriter]:
    """Writes a file that appears under ``uri`` whole or not at all; an older one is replaced.

    A file system with directories gets a temporary name beside the target and a rename.

    Raises:
      CurateError: the storage refuses.
    """
    directory, name = FileSystems.split(uri)
    in_place = FileSystems.get_scheme(uri) in _OBJECT_STORES
    target = uri if in_place else join(directory, f"{_TEMPORARY}{uuid.uuid4().hex[:12]}.{name}")
    with _storage("write", uri):
        file = FileSystems.create(target, mime_type, compression_type=CompressionTypes.UNCOMPRESSED)
    writer = HashingWriter(file, uri)
    try:
        yield writer
        writer.close()
        if not in_place:
            with _storage("write", uri):
                FileSystems.rename([target], [uri])
    except BaseException:
        with contextlib.suppress(Exception):
            writer.abandon()
        if not in_place:
            with contextlib.suppress(Exception):
                FileSystems.delete([target])
        raise


def cache_dir() -> str:
    """Where downloads are kept: ``BEAM_CURATE_CACHE``, else ``~/.cache/beam_curate``."""
    return os.environ.get("BEAM_CURATE_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "beam_curate")

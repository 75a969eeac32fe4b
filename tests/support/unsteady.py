"""``unsteady:///path``: the local file system, that fails now and then and may keep no modification times."""

from __future__ import annotations

import errno
import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import ClassVar

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

PREFIX = "unsteady://"


class UnsteadyFileSystem(LocalFileSystem):
    """Fails every ``every``-th call of the operation ``failing`` (``read``, ``write``, ``rename``), in the middle of it."""

    failing: str | None = None
    every = 20
    has_times = True
    calls: ClassVar[Counter[str]] = Counter()
    failures = 0

    @classmethod
    def scheme(cls):
        return "unsteady"

    @classmethod
    def fails(cls, operation: str) -> bool:
        cls.calls[operation] += 1
        failed = operation == cls.failing and cls.calls[operation] % cls.every == 0
        cls.failures += failed
        return failed

    def split(self, path):
        directory, name = super().split(local(path))
        return PREFIX + directory, name

    def _list(self, directory):
        for found in super()._list(local(directory)):
            yield FileMetadata(PREFIX + found.path, found.size_in_bytes, found.last_updated_in_seconds * self.has_times)

    def mkdirs(self, path):
        super().mkdirs(local(path))

    def exists(self, path):
        return super().exists(local(path))

    def delete(self, paths):
        super().delete([local(path) for path in paths])

    def checksum(self, path):
        return hashlib.md5(Path(local(path)).read_bytes()).hexdigest()

    def rename(self, sources, destinations):
        for source, destination in zip(sources, destinations, strict=True):
            if self.fails("rename"):
                raise BeamIOError("Rename operation failed", {(source, destination): OSError(errno.EIO, "unsteady")})
            super().rename([local(source)], [local(destination)])

    def open(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        return _Unsteady(super().open(local(path), mime_type, compression_type))

    def create(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        return _Unsteady(super().create(local(path), mime_type, compression_type))


def local(path: str) -> str:
    return path.removeprefix(PREFIX)


class _Unsteady(io.BufferedIOBase):
    def __init__(self, file):
        self._file = file

    def read(self, size=-1):
        data = self._file.read(size)
        if UnsteadyFileSystem.fails("read"):
            raise OSError(errno.EIO, "unsteady", data[: len(data) // 2])
        return data

    def write(self, data):
        if UnsteadyFileSystem.fails("write"):
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.EIO, "unsteady")
        return self._file.write(data)

    def seek(self, *where):
        return self._file.seek(*where)

    def tell(self):
        return self._file.tell()

    def seekable(self):
        return True

    def close(self):
        self._file.close()
        super().close()

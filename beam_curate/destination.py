"""The output directory: whether a run may write there, and that only one does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from apache_beam.io.filesystems import FileSystems

from beam_curate.errors import CurateError, UsageError
from beam_curate.formats import files, manifest


def check(output_dir: str) -> None:
    """Refuses a directory that holds files of others.

    Raises:
      UsageError: it does; names one of them.
    """
    strange = [path for path in files.list_tree(output_dir) if not manifest.is_ours(output_dir, path)]
    if strange:
        raise UsageError(
            f"--output_dir: {output_dir} holds files that are not a dataset's ({strange[0]}); choose an empty directory"
        )


@contextlib.contextmanager
def claimed(output_dir: str) -> Iterator[None]:
    """Holds a local directory for one run; the claim ends with the process, however it ends.

    Object stores have no such claim: there, two runs of the same dataset write the same objects, and of two different
    ones the later to finish is refused.

    Raises:
      CurateError: another run writes into the directory, or it cannot be made.
    """
    if not _can_lock(output_dir):
        yield
        return
    with _opened("--output_dir", output_dir) as directory:
        if not _lock(directory, exclusive=True):
            raise CurateError(f"--output_dir: another run is writing into {output_dir}")
        yield


@contextlib.contextmanager
def sharing(embeddings_dir: str) -> Iterator[None]:
    """Says that a run uses a store. The last one to leave removes the temporary files of runs that were killed."""
    if not _can_lock(embeddings_dir):
        yield
        return
    with _opened("--embeddings_dir", embeddings_dir) as directory:
        _lock(directory, exclusive=False)
        try:
            yield
        finally:
            if _lock(directory, exclusive=True):
                left = [path for path in files.list_tree(embeddings_dir) if files.is_temporary(path)]
                with contextlib.suppress(CurateError):  # a store that may only be read
                    files.delete([files.join(embeddings_dir, path) for path in left])


def _can_lock(directory: str) -> bool:
    return FileSystems.get_scheme(directory) is None and os.name == "posix"


@contextlib.contextmanager
def _opened(flag: str, path: str) -> Iterator[int]:
    try:
        os.makedirs(path, exist_ok=True)
        directory = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CurateError(f"{flag}: cannot make {path}: {error}") from error
    try:
        yield directory
    finally:
        os.close(directory)


def _lock(directory: int, exclusive: bool) -> bool:
    """Takes a lock, which replaces the one held; False if others stand in the way of an exclusive one."""
    import fcntl

    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    return True

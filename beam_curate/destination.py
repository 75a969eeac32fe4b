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
    strange = [path for path in files.list_tree(output_dir) if not manifest.is_ours(path)]
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
    if FileSystems.get_scheme(output_dir) is not None or os.name != "posix":
        yield
        return
    import fcntl

    try:
        os.makedirs(output_dir, exist_ok=True)
        directory = os.open(output_dir, os.O_RDONLY)
    except OSError as error:
        raise CurateError(f"--output_dir: cannot make {output_dir}: {error}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CurateError(f"--output_dir: another run is writing into {output_dir}") from None
    else:
        yield
    finally:
        os.close(directory)

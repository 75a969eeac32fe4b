"""Coverage-guided fuzzing: ``python tests/fuzz/fuzz.py tar|header [libFuzzer flags] [corpus directories]``.

What crashed once is kept in ``tests/fuzz/corpus``; a few minutes by hand::

    python tests/fuzz/fuzz.py tar -max_total_time=300 /tmp/new tests/fuzz/corpus/tar
"""

from __future__ import annotations

import gzip
import io
import sys
import warnings

MAX_PIXELS = 1_000_000


def check_tar(data: bytes) -> None:
    """Reading ends, with an error of ours or none, and what was read can be copied from where it is said to lie."""
    from beam_curate.formats.tar import (
        TarError,
        TarShardWriter,
        copy_sample,
        iter_samples,
        member_name,
        safe_key,
        split_name,
    )

    file: io.BufferedIOBase = gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)
    samples = []
    try:
        for sample in iter_samples(file):
            samples.append(sample)
    except TarError:
        pass
    position = 0
    for sample in samples:
        assert sample.offset >= position, "samples overlap"
        position = sample.offset + sample.size
        key = safe_key(sample.key, sample.names)
        assert key
        assert not key.startswith("/")
        assert not {"", ".", ".."} & set(key.split("/"))
        if sample.names and file.seekable() and isinstance(file, io.BytesIO):
            file.seek(sample.offset)
            copy = io.BytesIO()
            writer = TarShardWriter(copy)
            digest, _ = copy_sample(
                file,
                sample.offset,
                sample.size,
                lambda name, key=key: member_name(key, name),
                writer,
                lambda name: False,
            )
            writer.close()
            assert digest == sample.digest, "the copy differs"
            copy.seek(0)
            names = [name for again in iter_samples(copy) for name in again.names]
            assert len(names) == len(sample.names)
            assert all(split_name(name) for name in names)


def check_header(data: bytes) -> None:
    """A header is refused with an error of ours, or its image is decoded or refused with one."""
    import numpy as np

    from beam_curate.models.preprocess import ImageError, PillowPreprocessor, Preprocess, read_header

    preprocess = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0)
    try:
        header = read_header(data, MAX_PIXELS)
    except ImageError:
        return
    assert 0 < header.pixels <= MAX_PIXELS
    PillowPreprocessor(preprocess)([(data, header)], np.zeros((1, 32, 32, 3), np.uint8))


TARGETS = {"tar": check_tar, "header": check_header}


def main() -> None:
    import atheris

    target = sys.argv.pop(1)
    modules = {"tar": ["beam_curate.formats.tar"], "header": ["PIL", "beam_curate.models.preprocess"]}[target]
    with atheris.instrument_imports(include=modules):
        import beam_curate.formats.tar
        import beam_curate.models.preprocess  # noqa: F401
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""ReadTarShards: source tars to WebDataset samples, one tar after the other, never a whole tar in memory."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import PCollection

from beam_curate import metrics
from beam_curate.formats import files
from beam_curate.formats.store import EmbeddingStore
from beam_curate.formats.tar import TarError, TarSample, iter_samples, safe_key
from beam_curate.records import (
    NO_IMAGE,
    SPLIT_SAMPLE,
    TRUNCATED_TAR,
    UNREADABLE_TAR,
    ImageRecord,
    Rejection,
    Sample,
    SourceTar,
    TarEnd,
    TarEntry,
)

STAGE = "read"


def read_entries(tar: SourceTar) -> Iterator[Sample | Rejection | TarEnd]:
    """Every sample of a tar in order, or why it is none; what stopped the reading, if anything; and the end.

    Raises:
      CurateError: the storage fails. That says nothing about the tar, so it is not counted as unreadable.
    """
    images = 0
    try:
        with files.open_tar(tar.uri) as file:
            seen: set[str] = set()
            for sample in iter_samples(file):
                yield _entry(tar.uri, images, sample, seen)
                images += 1
    except TarError as error:
        reason = UNREADABLE_TAR if error.at_start else TRUNCATED_TAR
        yield Rejection(tar.uri, None, None, STAGE, reason, str(error))
    except files.UnavailableError as error:
        yield Rejection(tar.uri, None, None, STAGE, UNREADABLE_TAR, str(error))
    yield TarEnd(tar, images)


def _entry(source: str, index: int, sample: TarSample, seen: set[str]) -> Sample | Rejection:
    seen_before = sample.key in seen
    seen.add(sample.key)
    if sample.image is None or sample.image_member is None:
        members = ", ".join((*sample.names, *sample.others))[:500]
        if seen_before:
            detail = f"this key came earlier in the tar, its members are not adjacent; here: {members}"
            return Rejection(source, index, sample.key, STAGE, SPLIT_SAMPLE, detail)
        return Rejection(source, index, sample.key, STAGE, NO_IMAGE, f"no member is an image: {members}")
    return Sample(
        source,
        index,
        sample.key,
        safe_key(sample.key, sample.names),
        sample.image_member,
        sample.offset,
        sample.size,
        sample.digest,
        sample.image,
    )


class ReadTarShards(beam.PTransform[PCollection[SourceTar], PCollection[TarEntry]]):
    """Reads tars (``.tar``, ``.tar.gz``, ``.tgz``) as streams of ``TarEntry``.

    For each tar come its samples in order, each a ``Sample`` or the ``Rejection`` that says why it has no image, then a
    ``TarEnd``. ``EmbedImages`` takes them all.

    Args:
      store: a tar whose entries it holds is not read; its ``ImageRecord``s come instead, embedded already.
    """

    def __init__(self, store: EmbeddingStore | None = None):
        super().__init__()
        self._store = store

    def expand(self, tars: PCollection[SourceTar]) -> PCollection[TarEntry]:
        return tars | "Read" >> beam.ParDo(_Read(self._store))


class _Read(beam.DoFn):
    def __init__(self, store: EmbeddingStore | None):
        self._store = store

    def process(self, tar: SourceTar) -> Iterator[TarEntry]:
        stored = self._store.read(tar) if self._store is not None else None
        entries: Iterator[TarEntry] = iter(stored) if stored is not None else read_entries(tar)
        rejected = False
        for entry in entries:
            if isinstance(entry, Rejection):
                rejected |= entry.index is None
            elif isinstance(entry, TarEnd):
                metrics.count(metrics.TARS_READ)
                metrics.count(metrics.TARS_REJECTED, int(rejected))
                metrics.count(metrics.IMAGES_READ, entry.images)
            elif isinstance(entry, ImageRecord):
                metrics.count(metrics.IMAGES_FROM_STORE)
            yield entry

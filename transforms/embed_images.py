"""EmbedImages: samples to image records with CLIP embeddings, through RunInference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import DoOutputsTuple, PCollection, TaggedOutput

from beam_curate import metrics
from beam_curate.formats.store import EmbeddingStore
from beam_curate.models.clip import ClipModelHandler
from beam_curate.records import ImageRecord, Rejection, TarEnd, TarEntry

RECORDS = "records"
REJECTS = "rejects"
TARS = "tars"

_logger = logging.getLogger(__name__)


class EmbedImages(beam.PTransform[PCollection[TarEntry], Any]):
    """Embeds every image of the tars that ``ReadTarShards`` read.

    Gives a PCollection of ``ImageRecord``. With ``with_rejects`` it gives three PCollections instead, ``records``,
    ``rejects`` (``Rejection``) and ``tars`` (``TarEnd``), from which all that was read can be accounted for.

    Args:
      handler: the model.
      store: where the entries of each tar are published when its last image is embedded.
      with_rejects: give the rejects and the tars too.
    """

    def __init__(self, handler: ClipModelHandler, store: EmbeddingStore | None = None, with_rejects: bool = False):
        super().__init__()
        self._handler = handler
        self._store = store
        self._with_rejects = with_rejects

    def expand(self, entries: PCollection[TarEntry]) -> PCollection[ImageRecord] | DoOutputsTuple:
        embedded = entries | "RunInference" >> RunInference(self._handler)
        if self._store is not None:
            embedded = embedded | "PublishEmbeddings" >> beam.ParDo(_PublishEmbeddings(self._store))
        outputs = embedded | "SplitByKind" >> beam.ParDo(_SplitByKind()).with_outputs(REJECTS, TARS, main=RECORDS)
        return outputs if self._with_rejects else outputs[RECORDS]


class _PublishEmbeddings(beam.DoFn):
    """Collects a tar's entries as they pass, and publishes them with its end.

    A tar is read and embedded in one bundle, so its entries come one after the other.
    """

    def __init__(self, store: EmbeddingStore):
        self._store = store

    def start_bundle(self) -> None:
        self._entries: dict[str, list[ImageRecord | Rejection]] = {}

    def process(self, entry: TarEntry) -> Iterator[TarEntry]:
        if isinstance(entry, (ImageRecord, Rejection)):
            self._entries.setdefault(entry.source, []).append(entry)
        elif isinstance(entry, TarEnd):
            entries = self._entries.pop(entry.tar.uri, [])
            if not entry.from_store:
                self._store.publish(entries, entry)
        yield entry

    def finish_bundle(self) -> None:
        for source in self._entries:
            _logger.warning("%s ended in another bundle than it began; its embeddings are not kept", source)


class _SplitByKind(beam.DoFn):
    def process(self, entry: TarEntry) -> Iterator[ImageRecord | TaggedOutput[str, Any]]:
        if isinstance(entry, ImageRecord):
            yield entry
        elif isinstance(entry, Rejection):
            metrics.count(metrics.IMAGES_FAILED, int(entry.index is not None))
            yield TaggedOutput(REJECTS, entry)
        elif isinstance(entry, TarEnd):
            metrics.count(metrics.TARS_DONE)
            yield TaggedOutput(TARS, entry)
        else:
            raise TypeError(f"not embedded: {type(entry).__name__}")

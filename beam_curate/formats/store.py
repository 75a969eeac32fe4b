"""The embedding store: one Parquet per source tar, so that no image is embedded twice.

``{embeddings_dir}/{fingerprint}/`` belongs to one encoder; ``_encoder.json`` in it says which. A tar's file is
published when its last image has been embedded and holds every entry of the tar: embedded images and failures alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from beam_curate.errors import CurateError
from beam_curate.formats import files, parquet
from beam_curate.records import ImageRecord, Rejection, SourceTar, TarEnd

ENCODER_NAME = "_encoder.json"
_ENTRY = "beam_curate.tar"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """What an embedding depends on. Two runs with equal encoders share a store.

    Attributes:
      clip_model, clip_pretrained: as on the command line.
      weights_sha256: hex SHA-256 of the checkpoint file.
      precision: ``fp32`` or ``fp16``.
      device: ``cpu`` or ``cuda``.
      decoder: ``dali`` or ``pillow``.
      preprocess: open_clip's ``preprocess_cfg``.
      embedding_size: length of an embedding.
      max_image_pixels: larger images have no embedding.
    """

    clip_model: str
    clip_pretrained: str
    weights_sha256: str
    precision: str
    device: str
    decoder: str
    preprocess: str
    embedding_size: int
    max_image_pixels: int

    @property
    def fingerprint(self) -> str:
        """12 hex digits of the SHA-256 over everything but the path by which the weights were named."""
        facts = {name: value for name, value in asdict(self).items() if name != "clip_pretrained"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class EmbeddingStore:
    """Reads and publishes the entries of source tars in one encoder's directory."""

    embeddings_dir: str
    encoder: Encoder

    @property
    def directory(self) -> str:
        return files.join(self.embeddings_dir, self.encoder.fingerprint)

    def describe(self) -> None:
        """Publishes ``_encoder.json``, if it is not there."""
        uri = files.join(self.directory, ENCODER_NAME)
        if not files.exists(uri):
            with files.publish(uri) as file:
                file.write((json.dumps(asdict(self.encoder), indent=1, sort_keys=True) + "\n").encode())

    def path(self, source: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", source.rpartition("/")[2])[:80]
        return files.join(self.directory, f"{stem}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.parquet")

    def read(self, tar: SourceTar) -> list[ImageRecord | Rejection | TarEnd] | None:
        """The entries of a tar in order, its end last; None if they are not there or the tar has changed since."""
        uri = self.path(tar.uri)
        if not files.exists(uri):
            return None
        try:
            table = parquet.open_table(uri)
        except pa.ArrowInvalid:
            _logger.warning("%s is damaged; its tar is embedded again", uri)
            return None
        stated = json.loads((table.schema_arrow.metadata or {}).get(_ENTRY.encode(), b"null"))
        if stated is None:
            return None
        images = stated.pop("images")
        if SourceTar(**stated) != tar:
            return None
        entries: list[ImageRecord | Rejection | TarEnd] = [
            _entry(tar.uri, row) for batch in table.iter_batches() for row in batch.to_pylist()
        ]
        return [*entries, TarEnd(tar, images, from_store=True)]

    def publish(self, entries: Iterable[ImageRecord | Rejection], end: TarEnd) -> None:
        tar = {**asdict(end.tar), "images": end.images}
        schema = _schema(self.encoder.embedding_size, {_ENTRY: json.dumps(tar, sort_keys=True)})
        parquet.write_rows(self.path(end.tar.uri), schema, (_row(entry) for entry in entries))


def find_encoders(embeddings_dir: str) -> Iterator[Encoder]:
    """The encoders that have a store in a directory."""
    for path in files.list_tree(embeddings_dir):
        if path.count("/") == 1 and path.endswith("/" + ENCODER_NAME):
            uri = files.join(embeddings_dir, path)
            try:
                yield Encoder(**json.loads(files.read_bytes(uri)))
            except (TypeError, ValueError) as error:
                raise CurateError(f"{uri} does not describe an encoder of this version: {error}") from error


_RECORD_FIELDS = (
    "index",
    "key",
    "image_id",
    "member",
    "offset",
    "size",
    "digest",
    "sha256",
    "width",
    "height",
    "format",
    "embedding",
)
_REJECTION_FIELDS = ("index", "key", "stage", "reason", "detail", "width", "height", "sha256")


def _schema(embedding_size: int, metadata: dict[str, str]) -> pa.Schema:
    return pa.schema(
        [
            ("index", pa.int64()),
            ("key", pa.string()),
            ("image_id", pa.string()),
            ("member", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("digest", pa.binary(32)),
            ("sha256", pa.binary(32)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", pa.string()),
            ("embedding", pa.binary(2 * embedding_size)),
            ("stage", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ],
        metadata=metadata,
    )


def _row(entry: ImageRecord | Rejection) -> dict[str, Any]:
    names = _RECORD_FIELDS if isinstance(entry, ImageRecord) else _REJECTION_FIELDS
    row: dict[str, Any] = dict.fromkeys((*_RECORD_FIELDS, *_REJECTION_FIELDS))
    row.update((name, getattr(entry, name)) for name in names)
    return row


def _entry(source: str, row: dict[str, Any]) -> ImageRecord | Rejection:
    if row["reason"] is None:
        return ImageRecord(source, **{name: row[name] for name in _RECORD_FIELDS})
    return Rejection(source, **{name: row[name] for name in _REJECTION_FIELDS})

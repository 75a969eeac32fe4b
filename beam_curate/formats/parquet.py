"""The Parquet schemas of the output and of its rejects, and how rows become files.

Files are the same bytes for the same rows: one compression, one row-group rule, no timestamps.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from beam_curate.formats import files

# A row group is closed at this many rows or, so that huge metadata cannot pile up in memory, bytes of text.
_ROW_GROUP_ROWS = 10_000
_ROW_GROUP_BYTES = 32 << 20
_LARGE_JSON = 1 << 20
# Columns whose values repeat, and those whose values can be huge: a dictionary or a minimum of them would be copies.
_FEW_VALUES = ("tar_file", "format", "source", "stage", "reason")
_FREE_TEXTS = ("caption", "metadata", "detail")

REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("index", pa.int64()),
        ("key", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("aesthetic_score", pa.float32()),
        ("nsfw_score", pa.float32()),
    ]
)


def dataset_schema(embedding_size: int | None, metadata: Mapping[str, str]) -> pa.Schema:
    """The schema of an output Parquet; without an embedding column if ``embedding_size`` is None."""
    fields = [
        (name, pa.string())
        for name in ("image_id", "tar_file", "member_name", "original_path", "original_key", "caption")
    ]
    fields += [("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("sha256", pa.string())]
    fields += [("aesthetic_score", pa.float32()), ("nsfw_score", pa.float32())]
    if embedding_size is not None:
        fields.append(("embedding", pa.list_(pa.float16(), embedding_size)))
    fields.append(("metadata", pa.string()))
    return pa.schema(fields, metadata=dict(metadata))


def is_text_member(name: str) -> bool:
    """Whether a member holds what the ``caption`` or ``metadata`` column is made of."""
    return _extension(name) in ("txt", "json")


def caption_and_metadata(members: Mapping[str, bytes]) -> tuple[str | None, bytes | None]:
    """The two text columns, from the payloads of a sample's ``.txt`` and ``.json`` members.

    The caption is the first ``.txt`` member, else ``caption`` of the first ``.json``; bytes that are not UTF-8 become
    U+FFFD. The metadata is the first ``.json`` member as it stood, if it is JSON in UTF-8. NaN and infinities, which
    Python writes, are not JSON (RFC 8259): such a member still gives its caption, unless it is larger than 1 MiB.
    """
    text = next((data for name, data in members.items() if _extension(name) == "txt"), None)
    caption = None if text is None else text.decode("utf-8", "replace")
    document = next((data for name, data in members.items() if _extension(name) == "json"), None)
    if document is None:
        return caption, None
    is_json, stated = _caption_in_json(document) if len(document) <= _LARGE_JSON else _caption_in_large_json(document)
    if caption is None and stated is not None:
        # JSON can escape lone surrogates, which UTF-8 cannot hold.
        caption = stated.encode("utf-8", "replace").decode("utf-8")
    return caption, document if is_json else None


def _caption_in_json(document: bytes) -> tuple[bool, str | None]:
    """Whether it is JSON, and its top-level ``caption`` if that is a string."""
    constants: list[str] = []
    try:
        value = json.loads(document.decode("utf-8"), parse_constant=constants.append)
    except (ValueError, RecursionError):
        return False, None
    caption = value.get("caption") if isinstance(value, dict) else None
    return not constants, caption if isinstance(caption, str) else None


def _caption_in_large_json(document: bytes) -> tuple[bool, str | None]:
    """The same, without building the document in memory: its objects can take ten times its size."""
    caption: str | None = None
    depth, at_caption = 0, False
    try:
        for event, value in ijson.basic_parse(io.BytesIO(document)):
            if event in ("start_map", "start_array"):
                depth += 1
            elif event in ("end_map", "end_array"):
                depth -= 1
            elif event == "string" and at_caption:
                caption = value
            at_caption = event == "map_key" and depth == 1 and value == "caption"
    except (ijson.JSONError, UnicodeDecodeError):
        return False, None
    return True, caption


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


class RowWriter:
    """Writes rows, given as dicts, to an open file. A context manager: the file is whole when it is left."""

    def __init__(self, file: BinaryIO | files.HashingWriter, schema: pa.Schema):
        self._schema = schema
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            version="2.6",
            use_dictionary=[name for name in _FEW_VALUES if name in schema.names],
            write_statistics=[name for name in schema.names if name not in _FREE_TEXTS],
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))
        if len(self._rows) >= _ROW_GROUP_ROWS or self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def note(self, facts: Mapping[str, str]) -> None:
        """Adds to the key-value metadata of the file what is known only at the end."""
        self._writer.add_key_value_metadata(dict(facts))

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = []
        for field in self._schema:
            values = [row[field.name] for row in self._rows]
            columns.append(
                _embedding_column(values, field.type)
                if pa.types.is_fixed_size_list(field.type)
                else pa.array(values, field.type)
            )
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._bytes = [], 0


def _embedding_column(values: list[bytes], kind: pa.FixedSizeListType) -> pa.Array:
    """Packed little-endian float16 vectors as a fixed-size list column, without a Python object per number."""
    numbers = pa.Array.from_buffers(pa.float16(), len(values) * kind.list_size, [None, pa.py_buffer(b"".join(values))])
    return pa.FixedSizeListArray.from_arrays(numbers, type=kind)


def write_rows(uri: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> files.HashingWriter:
    """Publishes a Parquet file; the returned writer knows its size and SHA-256."""
    with files.publish(uri) as file, RowWriter(file, schema) as writer:
        for row in rows:
            writer.add(row)
    return file


def scan(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a file, one row group after the other. Of the file only these columns are read."""
    with files.open_read(uri) as file:
        table = pq.ParquetFile(file)
        for group in range(table.num_row_groups):
            yield table.read_row_group(group, columns=list(columns))


def bounds(uri: str, column: str) -> tuple[float, float] | None:
    """The least and the greatest number of a column, as the file's footer states them; None where all are missing."""
    with files.open_read(uri) as file:
        metadata = pq.ParquetFile(file).metadata
    chunks = [
        metadata.row_group(group).column(i)
        for group in range(metadata.num_row_groups)
        for i in range(metadata.num_columns)
    ]
    stated = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
    known = [statistics for statistics in stated if statistics is not None and statistics.has_min_max]
    if not known:
        return None
    return min(float(statistics.min) for statistics in known), max(float(statistics.max) for statistics in known)


def open_table(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(files.read_bytes(uri)))

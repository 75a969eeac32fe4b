"""The text columns of the output, and the files' determinism."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_curate.formats.parquet import caption_and_metadata, dataset_schema, write_rows


@pytest.mark.parametrize(
    ("members", "caption", "metadata"),
    [
        ({}, None, None),
        ({"a.txt": b"text", "a.json": b'{"caption": "json"}'}, "text", '{"caption": "json"}'),
        ({"a.json": b'{"caption": "json"}'}, "json", '{"caption": "json"}'),
        ({"a.TXT": b"caf\xe9"}, "caf\ufffd", None),
        ({"a.json": b"[1, 2]"}, None, "[1, 2]"),
        ({"a.json": b"not json"}, None, None),
        ({"a.json": b'{"caption": "c", "x": NaN}'}, "c", None),
        ({"a.json": b'{"caption": 3}'}, None, '{"caption": 3}'),
        ({"a.json": b'{"caption": "\\ud800"}'}, "?", '{"caption": "\\ud800"}'),
        ({"a.json": b"[" * 100_000}, None, None),
        ({"a.json": b'{"a": "\xff"}'}, None, None),
    ],
)
def test_caption_and_metadata(members, caption, metadata):
    assert caption_and_metadata(members) == (caption, None if metadata is None else metadata.encode())


def test_embeddings_are_stored_bit_for_bit(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype("<f2")
    schema = dataset_schema(8, {"k": "v"})
    rows = [dict.fromkeys(schema.names) | {"embedding": vector.tobytes()} for vector in vectors]
    file = write_rows(str(tmp_path / "a.parquet"), schema, rows)
    column = pq.read_table(tmp_path / "a.parquet")["embedding"].to_pylist()
    assert np.array_equal(np.array(column, np.float16), vectors)
    data = (tmp_path / "a.parquet").read_bytes()
    assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())

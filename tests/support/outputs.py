"""What a run wrote, read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq


class Dataset:
    """A finished output directory."""

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)

    @property
    def manifest(self) -> dict:
        return json.loads((self.directory / "_manifest.json").read_text())

    @property
    def tars(self) -> list[Path]:
        return [self.directory / shard["tar"] for shard in self.manifest["shards"]]

    @property
    def rows(self) -> list[dict]:
        return [
            row
            for shard in self.manifest["shards"]
            for row in pq.read_table(self.directory / shard["parquet"]).to_pylist()
        ]

    @property
    def rejects(self) -> list[dict]:
        return [
            row
            for part in self.manifest["rejects"]
            for row in pq.read_table(self.directory / part["parquet"]).to_pylist()
        ]


def tree(directory: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by relative path."""
    root = Path(directory)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }

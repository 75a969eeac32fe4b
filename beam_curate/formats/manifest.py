"""``_manifest.json``: what a finished dataset consists of. Its presence means that the dataset is complete."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from beam_curate.errors import CurateError
from beam_curate.formats import files

NAME = "_manifest.json"
REPORT_NAME = "_report.html"
REJECTS_DIR = "_rejects"
EMBEDDINGS_DIR = "_embeddings"
FORMAT_VERSION = 1
_SHARD_NAME = re.compile(r"images-[0-9a-f]{12}-[0-9]{6,}\.(tar|parquet)")
_REJECTS_NAME = re.compile(REJECTS_DIR + r"/rejects-[0-9a-f]{12}-[0-9]{6,}\.parquet")


@dataclass(frozen=True)
class Provenance:
    """Where a dataset comes from: the manifest's ``input``, ``config``, ``models``, and the Parquet schema metadata."""

    input: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    parquet: dict[str, str] = field(default_factory=dict)


def read(output_dir: str) -> dict[str, Any] | None:
    """The manifest of a directory; None if it is unfinished or not a dataset."""
    uri = files.join(output_dir, NAME)
    if not files.exists(uri):
        return None
    try:
        manifest = json.loads(files.read_bytes(uri))
    except ValueError as error:
        raise CurateError(f"{uri} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CurateError(f"{uri} is not a manifest of format version {FORMAT_VERSION}")
    return manifest


def encode(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def finish(output_dir: str, manifest: dict[str, Any], overwrite: bool) -> None:
    """Publishes the manifest, then removes what earlier, unfinished or replaced runs have left.

    Where another run has finished a different dataset in the meantime, its files stay and this run's are removed.

    Raises:
      CurateError: it has, and may not be replaced.
    """
    existing = read(output_dir)
    if existing == manifest:
        return
    if existing is not None and not overwrite:
        ours = set(listed(manifest)) - set(listed(existing))
        files.delete([files.join(output_dir, path) for path in files.list_tree(output_dir) if path in ours])
    if existing is not None:
        check_replaceable(output_dir, overwrite)
    with files.publish(files.join(output_dir, NAME)) as file:
        file.write(encode(manifest))
    clear(output_dir, replaced=True)


def clear(output_dir: str, replaced: bool = False) -> None:
    """Removes what the manifest does not list, if there is one: what unfinished or replaced runs have left.

    The report is part of a finished dataset, unless the dataset that it tells of has been replaced.
    """
    existing = read(output_dir)
    keep = {NAME, *listed(existing)} if existing is not None else set()
    if existing is not None and not replaced:
        keep.add(REPORT_NAME)
    stale = [
        path for path in files.list_tree(output_dir) if path not in keep and is_ours(path) and not _is_stored(path)
    ]
    files.delete([files.join(output_dir, path) for path in stale])


def _is_stored(path: str) -> bool:
    return path.startswith(EMBEDDINGS_DIR + "/")


def listed(manifest: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file of a dataset, by its path relative to the directory."""
    found = {}
    for shard in manifest["shards"]:
        found[shard["tar"]] = (shard["tar_bytes"], shard["tar_sha256"])
        found[shard["parquet"]] = (shard["parquet_bytes"], shard["parquet_sha256"])
    for part in manifest["rejects"]:
        found[part["parquet"]] = (part["parquet_bytes"], part["parquet_sha256"])
    return found


def is_ours(path: str) -> bool:
    """Whether a path below an output directory is a name that this program gives, or a temporary one of it."""
    return (
        path in (NAME, REPORT_NAME)
        or _SHARD_NAME.fullmatch(path) is not None
        or _REJECTS_NAME.fullmatch(path) is not None
        or _is_stored(path)
        or files.is_temporary(path)
    )


def check_replaceable(output_dir: str, overwrite: bool) -> None:
    """Refuses to replace a finished dataset without being told to. It stays until the other is finished.

    Raises:
      CurateError: the flag that allows it was not given.
    """
    if not overwrite:
        raise CurateError(
            f"{output_dir} holds another finished dataset; choose another --output_dir or give --overwrite"
        )

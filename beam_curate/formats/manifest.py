"""``_manifest.json``: what a finished dataset consists of. Its presence means that the dataset is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from beam_curate.errors import CurateError
from beam_curate.formats import files

NAME = "_manifest.json"
REPORT_NAME = "_report.html"
REJECTS_DIR = "_rejects"
EMBEDDINGS_DIR = "_embeddings"
FORMAT_VERSION = 1
_SHARD_NAME = re.compile(r"images-[0-9a-f]{12}-[0-9]{6,}\.(tar|parquet|idx)")
_REJECTS_NAME = re.compile(REJECTS_DIR + r"/rejects-[0-9a-f]{12}-[0-9]{6,}\.parquet")


@dataclass(frozen=True)
class Sidecar:
    """A file that describes the whole dataset to its loaders.

    ``opening`` is how it can begin: others write files of such names too, and theirs are not to be touched.
    """

    file: str
    opening: tuple[bytes, ...]


CARD_OPENING = "---\n# Written by beam-curate"
WIDS = Sidecar("shardindex.json", (b'{\n "__kind__": "wids-shard-index-v1",\n "name": "images-',))
SIZES = Sidecar("sizes.json", (b'{\n "images-', b"{}\n"))
CARD = Sidecar("README.md", (CARD_OPENING.encode(),))
OF_DATASET = {"wids": WIDS, "sizes": SIZES, "card": CARD}
# A DALI index belongs to one shard, and has its name.
DALI = "dali"
SIDECARS = ("wids", "sizes", DALI, "card")


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


def finish(
    output_dir: str, manifest: dict[str, Any], overwrite: bool, of_dataset: Mapping[str, bytes] | None = None
) -> int:
    """Publishes the sidecars of the whole dataset and the manifest, then removes what earlier, unfinished or replaced
    runs have left. Returns how many sidecars it published.

    Where another run has finished a different dataset in the meantime, its files stay and this run's are removed. A
    dataset that differs in its sidecars alone is not a different one.

    Args:
      of_dataset: the sidecars, by file name; the manifest lists them.

    Raises:
      CurateError: another dataset is finished, and may not be replaced; or somebody else's file has a sidecar's name.
    """
    existing = read(output_dir)
    if existing == manifest:
        return 0
    before, after = listed(existing) if existing is not None else {}, listed(manifest)
    if existing is not None and _without_sidecars(existing) != _without_sidecars(manifest):
        if not overwrite:
            mine = [path for path in files.list_tree(output_dir) if path in after and path not in before]
            files.delete([files.join(output_dir, path) for path in mine if is_ours(output_dir, path)])
        check_replaceable(output_dir, overwrite)
    changed = {name: data for name, data in (of_dataset or {}).items() if before.get(name) != after[name]}
    for path in changed.keys() & set(files.list_tree(output_dir)) - before.keys():
        if not is_ours(output_dir, path):
            raise CurateError(f"{files.join(output_dir, path)} is not from this program; move it away")
    if changed.keys() & before.keys():
        # Their names stay when their content changes: until all are there, the directory is unfinished.
        files.delete([files.join(output_dir, NAME)])
    for name, data in changed.items():
        with files.publish(files.join(output_dir, name)) as file:
            file.write(data)
    with files.publish(files.join(output_dir, NAME)) as file:
        file.write(encode(manifest))
    clear(output_dir, replaced=True)
    return len(changed)


def _without_sidecars(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "sidecars"}


def clear(output_dir: str, replaced: bool = False) -> None:
    """Removes what the manifest does not list, if there is one: what unfinished or replaced runs have left.

    The report is part of a finished dataset, unless the dataset that it tells of has been replaced.
    """
    existing = read(output_dir)
    keep = {NAME, *listed(existing)} if existing is not None else set()
    if existing is not None and not replaced:
        keep.add(REPORT_NAME)
    stale = [
        path
        for path in files.list_tree(output_dir)
        if path not in keep and not _is_stored(path) and is_ours(output_dir, path)
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
    for sidecar in manifest.get("sidecars", []):
        found[sidecar["file"]] = (sidecar["bytes"], sidecar["sha256"])
    return found


def choose_sidecars(names: Iterable[str]) -> tuple[str, ...]:
    """The sidecars with these names, each once, in one order.

    Raises:
      ValueError: a name is unknown.
    """
    asked = set(names)
    unknown = sorted(asked - set(SIDECARS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(SIDECARS)}")
    return tuple(name for name in SIDECARS if name in asked)


def sidecars_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The names of the sidecars that a dataset has."""
    listed_files = [sidecar["file"] for sidecar in manifest.get("sidecars", [])]
    names = [name for name, sidecar in OF_DATASET.items() if sidecar.file in listed_files]
    return choose_sidecars([*names, DALI] if any(file.endswith(".idx") for file in listed_files) else names)


def is_ours(output_dir: str, path: str) -> bool:
    """Whether a path below an output directory is a file of this program, or a temporary one of it."""
    return (
        path in (NAME, REPORT_NAME)
        or _SHARD_NAME.fullmatch(path) is not None
        or _REJECTS_NAME.fullmatch(path) is not None
        or _is_stored(path)
        or files.is_temporary(path)
        or any(path == sidecar.file and _opens(output_dir, sidecar) for sidecar in OF_DATASET.values())
    )


def _opens(output_dir: str, sidecar: Sidecar) -> bool:
    with files.open_read(files.join(output_dir, sidecar.file)) as file:
        return file.read(max(map(len, sidecar.opening))).startswith(sidecar.opening)


def check_replaceable(output_dir: str, overwrite: bool) -> None:
    """Refuses to replace a finished dataset without being told to. It stays until the other is finished.

    Raises:
      CurateError: the flag that allows it was not given.
    """
    if not overwrite:
        raise CurateError(
            f"{output_dir} holds another finished dataset; choose another --output_dir or give --overwrite"
        )

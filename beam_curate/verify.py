"""``python -m beam_curate.verify OUTPUT_DIR``: is a dataset complete and unharmed?"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_curate.errors import CurateError, UsageError
from beam_curate.formats import files, manifest, parquet, sidecars
from beam_curate.formats.tar import TarError, TarSample, iter_samples
from beam_curate.options import check_beam_flags


def faults(output_dir: str) -> Iterator[str]:
    """One line for each thing that is not as the manifest says."""
    try:
        document = manifest.read(output_dir)
    except CurateError as error:
        yield str(error)
        return
    if document is None:
        yield f"{files.join(output_dir, manifest.NAME)} is missing: the dataset is not finished"
        return
    listed = manifest.listed(document)
    present = set(files.list_tree(output_dir))
    for path in sorted(present - set(listed) - {manifest.NAME, manifest.REPORT_NAME}):
        if not path.startswith(manifest.EMBEDDINGS_DIR + "/"):
            yield f"{path} is not in the manifest"
    intact = set()
    for path, (size, sha256) in listed.items():
        if path not in present:
            yield f"{path} is missing"
            continue
        found_size, found_sha256 = files.measure(files.join(output_dir, path))
        if found_size != size:
            yield f"{path} has {found_size} bytes, not {size}"
        elif found_sha256 != sha256:
            yield f"{path} has SHA-256 {found_sha256}, not {sha256}"
        else:
            intact.add(path)
    ids: set[str] = set()
    for shard in document["shards"]:
        if {shard["tar"], shard["parquet"]} <= intact:
            yield from _shard_faults(output_dir, shard, ids)
    yield from _sidecar_faults(output_dir, document, intact)
    yield from _count_faults(output_dir, document, intact)


def _sidecar_faults(output_dir: str, document: dict[str, Any], intact: set[str]) -> Iterator[str]:
    """Every sidecar must be what the shards and the manifest give."""
    listed = {sidecar["file"] for sidecar in document.get("sidecars", [])}
    if not listed or not {shard[kind] for shard in document["shards"] for kind in ("tar", "parquet")} <= intact:
        return
    names = [name for name, sidecar in manifest.OF_DATASET.items() if sidecar.file in listed]
    of_dataset = sidecars.compose(names, document, output_dir)
    indices = {sidecars.index_name(shard["tar"]): shard["tar"] for shard in document["shards"]}
    for path in sorted(listed - of_dataset.keys() - indices.keys()):
        yield f"{path} is listed as a sidecar, but is none"
    if listed & indices.keys():
        for path in sorted(indices.keys() - listed):
            yield f"{path} is not in the manifest, as other indices are"
    for path in sorted(listed & intact & (of_dataset.keys() | indices.keys())):
        expected = of_dataset.get(path) or sidecars.index_tar(files.join(output_dir, indices[path]))
        if files.read_bytes(files.join(output_dir, path)) != expected:
            yield f"{path} does not describe these shards"


def _shard_faults(output_dir: str, shard: dict[str, Any], ids: set[str]) -> Iterator[str]:
    """Tar and Parquet must agree sample by sample."""
    rows = parquet.open_table(files.join(output_dir, shard["parquet"])).read().to_pylist()
    name = shard["tar"]
    try:
        with files.open_tar(files.join(output_dir, name)) as file:
            samples = list(_facts(iter_samples(file)))
    except TarError as error:
        yield f"{name}: {error}"
        return
    if not len(samples) == len(rows) == shard["images"]:
        yield f"{name} has {len(samples)} samples, its Parquet {len(rows)} rows, the manifest says {shard['images']}"
        return
    for i, (row, (member, sha256)) in enumerate(zip(rows, samples, strict=True)):
        if row["tar_file"] != name or row["member_name"] != member:
            yield f"{name}: sample {i} is {member}, its row says {row['tar_file']}/{row['member_name']}"
        elif row["sha256"] != sha256:
            yield f"{name}: {member} has SHA-256 {sha256}, its row says {row['sha256']}"
        if row["image_id"] in ids:
            yield f"{name}: image_id {row['image_id']} is not unique"
        ids.add(row["image_id"])


def _facts(samples: Iterator[TarSample]) -> Iterator[tuple[str | None, str]]:
    for sample in samples:
        yield sample.image_member, hashlib.sha256(sample.image or b"").hexdigest()


def _count_faults(output_dir: str, document: dict[str, Any], intact: set[str]) -> Iterator[str]:
    images = document["images"]
    if images["read"] != images["written"] + sum(images["rejected"].values()):
        yield f"the manifest's counts do not add up: {images}"
    if images["written"] != sum(shard["images"] for shard in document["shards"]):
        yield f"the manifest says {images['written']} images were written, its shards hold another number"
    counts: dict[str, int] = {}
    for part in document["rejects"]:
        if part["parquet"] not in intact:
            return
        table = parquet.open_table(files.join(output_dir, part["parquet"])).read(columns=["index", "reason"])
        for index, reason in zip(table["index"].to_pylist(), table["reason"].to_pylist(), strict=True):
            if index is not None:
                counts[reason] = counts.get(reason, 0) + 1
    if counts != images["rejected"]:
        yield f"{manifest.REJECTS_DIR} counts {counts}, the manifest {images['rejected']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each fault. Returns 0 if there is none, 1 if there is, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m beam_curate.verify",
        description="Checks that a dataset is complete and unharmed. Takes Beam's flags for storage too.",
    )
    parser.add_argument("output_dir", help="a directory on any Beam file system")
    known, rest = parser.parse_known_args(argv)
    found = 0
    try:
        check_beam_flags(rest)
        FileSystems.set_options(PipelineOptions(rest))
        for fault in faults(known.output_dir):
            print(fault)
            found += 1
    except UsageError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    except CurateError as error:
        print(error)
        return 1
    if not found:
        print(f"{known.output_dir}: every file is as the manifest says")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

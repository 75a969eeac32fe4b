"""Sidecars: the files beside the shards that particular loaders want, byte for byte.

Three describe the whole dataset and have the names that their loaders expect; a DALI index belongs to one tar. All are
functions of the manifest and the shards alone, so that ``verify`` can make them again and compare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import yaml

from beam_curate.errors import CurateError
from beam_curate.formats import files, manifest, parquet
from beam_curate.formats.tar import BLOCK, Member, TarError, TarReader, split_name

Manifest = Mapping[str, Any]


def wids_index(document: Manifest) -> bytes:
    """A wids v1 shard index, as ``widsindex create`` writes it (wids 0.1.11, ``wids_index.main_create``).

    ``wids.ShardListDataset`` needs ``wids_version``, and ``url`` and ``nsamples`` of each shard
    (``wids_specs.check_shards``); it takes URLs as relative to the index. ``md5sum``, which that loader does not read,
    is left out: the manifest has SHA-256. An index without shards is refused by the loader.
    """
    shards = [
        {"url": shard["tar"], "nsamples": shard["images"], "filesize": shard["tar_bytes"]}
        for shard in document["shards"]
    ]
    return _json(
        {
            "__kind__": "wids-shard-index-v1",
            "name": f"images-{document['hash']}",
            "wids_version": 1,
            "shardlist": shards,
        }
    )


def sizes(document: Manifest) -> bytes:
    """The images in each tar, by its file name, as open_clip's training reads it (``open_clip_train.data``,
    ``get_dataset_size``: without it, ``--train-num-samples`` has to be given).
    """
    return _json({shard["tar"]: shard["images"] for shard in document["shards"]})


def dali_index(members: Iterable[Member]) -> bytes:
    """The index of a tar for ``nvidia.dali.fn.readers.webdataset(index_paths=...)``, as ``wds2idx`` writes it (v1.2).

    A line for each sample, with extension, payload offset, payload size and name of each member. DALI splits it at
    spaces and so refuses what ``wds2idx`` makes of names with spaces: here a space in a name, which DALI only shows to
    people, is ``_``; a member whose extension is empty or has a space, and could not be asked for, is left out.

    Args:
      members: of a USTAR file, whose headers are one block each.
    """
    samples: list[str] = []
    last_key = None
    for member in members:
        split = split_name(member.name)
        if split is None or not split[1] or " " in split[1]:
            continue
        key, extension = split
        entry = f"{extension} {member.offset + BLOCK} {member.size} {member.name.replace(' ', '_')}"
        if key == last_key:
            samples[-1] += f" {entry}"
        else:
            samples.append(entry)
        last_key = key
    return "\n".join([f"v1.2 {len(samples)}", *samples, ""]).encode()


# How huggingface's `datasets` names the types of the columns (`datasets.features`, `Value`).
_DTYPES = {pa.string(): "string", pa.int32(): "int32", pa.float32(): "float32", pa.float16(): "float16"}
# The Hub's classes of size (`datasets/utils/resources/size_categories.json`).
_SIZE_CATEGORIES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)


def card(document: Manifest, schema: pa.Schema) -> bytes:
    """A Hugging Face dataset card: YAML that ``datasets.load_dataset(output_dir)`` goes by, and Markdown for people.

    The Parquet files are the split ``train``, since their columns are known; ``num_bytes`` is their size. The licence
    is not known here and is left to the owner. Of what comes from the data, only numbers stand in the YAML; in the
    Markdown, text stands in code spans.

    Args:
      schema: of the Parquet files.
    """
    images = document["images"]["written"]
    size = sum(shard["parquet_bytes"] for shard in document["shards"])
    front = {
        "pretty_name": f"Images curated by beam-curate ({document['hash']})",
        "size_categories": [next((name for limit, name in _SIZE_CATEGORIES if images < limit), "n>1T")],
        "tags": ["image", "webdataset", "beam-curate"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "images-*.parquet"}]}],
        "dataset_info": {
            "features": [_feature(field) for field in schema],
            "splits": [{"name": "train", "num_bytes": size, "num_examples": images}],
            "download_size": size,
            "dataset_size": size,
        },
    }
    return "\n".join(
        [
            f"{manifest.CARD_OPENING}, which does not know the images' licence: their owner adds `license:` here.",
            f"{yaml.safe_dump(front, sort_keys=False)}---",
            "",
            "# Images curated by beam-curate",
            "",
            *_contents(document),
            *_funnel(document),
            *_provenance(document),
            _HOW_TO_LOAD,
        ]
    ).encode()


def _feature(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(field.type):
        return {"name": field.name, "list": _DTYPES[field.type.value_type], "length": field.type.list_size}
    return {"name": field.name, "dtype": _DTYPES[field.type]}


def _contents(document: Manifest) -> list[str]:
    shards = document["shards"]
    tar_bytes, parquet_bytes = (sum(shard[f"{kind}_bytes"] for shard in shards) for kind in ("tar", "parquet"))
    return [
        f"{document['images']['written']} images in {len(shards)} shards: WebDataset tars ({tar_bytes} bytes) with the "
        f"original files and captions, and beside each a Parquet file ({parquet_bytes} bytes in all) with a row for "
        "each image: caption, size, SHA-256, scores and, unless it was turned off, the CLIP embedding.",
        "",
    ]


def _funnel(document: Manifest) -> list[str]:
    images = document["images"]
    rejected = [f"| {reason} | {count} |" for reason, count in sorted(images["rejected"].items())]
    return [
        "## From source to dataset",
        "",
        "| | images |",
        "|---|---:|",
        f"| read | {images['read']} |",
        *rejected,
        f"| **kept** | **{images['written']}** |",
        "",
        "What is not in the dataset is listed in `_rejects`, image by image, with the reason.",
        "",
    ]


def _provenance(document: Manifest) -> list[str]:
    config, models, tars = document["config"], document["models"], document["tars"]
    encoder = models.get("encoder") or {}
    lines = [f"- source: {_code(pattern)}" for pattern in document["input"]]
    if tars["read"] is not None:
        lines.append(f"- tars: {tars['read']} read, of which {tars['rejected']} could not be read to their end")
    lines += [f"- encoder, {name}: {_code(value)}" for name, value in sorted(encoder.items())]
    for kind, test in (("aesthetic", "score >= threshold"), ("nsfw", "score < threshold")):
        head = models.get(f"{kind}_head")
        if head is not None:
            lines += [
                f"- {kind} head: {_code(head['name'])}, SHA-256 {_code(head['sha256'])}",
                f"- {kind} threshold: {_code(config[f'{kind}_threshold'])} (kept: {test})",
            ]
    in_lines_above = ("clip_model", "clip_pretrained", "precision") if encoder else ()
    lines += [
        f"- {name}: {_code(value)}"
        for name, value in sorted(config.items())
        if name not in in_lines_above and not name.startswith(("aesthetic_", "nsfw_")) and value is not None
    ]
    return ["## How it was made", "", *lines, f"- content hash: {_code(document['hash'])}", ""]


_HOW_TO_LOAD = """\
## How to load it

```python
import glob

import datasets

rows = datasets.load_dataset("path/to/this/directory", split="train")  # the Parquet files: everything but the pixels
tars = sorted(glob.glob("path/to/this/directory/images-*.tar"))
images = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train")
```

## Licence

Not stated. The images have the licences under which their source was published.
"""


def _code(value: object) -> str:
    """Text from data as a Markdown code span, in which only backticks mean anything (CommonMark 0.31, 6.1)."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in str(value))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def compose(names: Collection[str], document: Manifest, output_dir: str) -> dict[str, bytes]:
    """The files that describe the whole dataset, by name, of the sidecars asked for.

    Raises:
      CurateError: a shard cannot be read.
    """
    found: dict[str, bytes] = {}
    if "wids" in names:
        found[manifest.WIDS.file] = wids_index(document)
    if "sizes" in names:
        found[manifest.SIZES.file] = sizes(document)
    if "card" in names:
        found[manifest.CARD.file] = card(document, _schema(output_dir, document))
    return found


def _schema(output_dir: str, document: Manifest) -> pa.Schema:
    if not document["shards"]:
        return parquet.dataset_schema(None, {})
    uri = files.join(output_dir, document["shards"][0]["parquet"])
    try:
        return parquet.open_table(uri).schema_arrow
    except pa.ArrowInvalid as error:
        raise CurateError(f"{uri}: {error}") from error


def index_name(tar: str) -> str:
    """The name of a tar's DALI index: the stem that ``wds2idx`` and DALI's examples use."""
    return f"{tar.removesuffix('.tar')}.idx"


def index_tar(uri: str) -> bytes:
    """The DALI index of a published tar.

    Raises:
      CurateError: it cannot be read.
    """
    try:
        with files.open_tar(uri) as file:
            return dali_index(TarReader(file))
    except TarError as error:
        raise CurateError(f"{uri}: {error}") from error

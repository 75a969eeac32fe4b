"""What the report says, gathered in one pass over the Parquet files of a dataset.

Memory does not grow with the dataset: row groups are read one by one, and what is kept of them are counts, bounded
selections of images, and 8 bytes for each of at most ``MOST_DIGESTS`` images, to find exact duplicates. Everything
gathered is a sum or a selection by a total order, so it does not depend on the order in which files are read.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_curate.errors import CurateError
from beam_curate.formats import files, manifest, parquet
from beam_curate.formats.store import EmbeddingStore, find_encoders
from beam_curate.records import ABOVE_NSFW_THRESHOLD, BELOW_AESTHETIC_THRESHOLD
from beam_curate.report.scores import Axis, Grid, Numbers, make_axis

Hashes = npt.NDArray[np.uint64]

# Files that are read at the same time; what waits for a bucket costs no processor.
READERS = 8
# Beyond this many images, duplicates are counted among a share of all digests: 128 MiB.
MOST_DIGESTS = 1 << 24
AESTHETIC, NSFW = "aesthetic", "nsfw"
EXAMPLES = 5
_SAMPLE = 1000
_SHEET, _NEIGHBOURS = 24, 8
_LONGEST_TEXT = 300
_BY_SCORE = (BELOW_AESTHETIC_THRESHOLD, ABOVE_NSFW_THRESHOLD)

# Lower edges, and what a bucket is called. The first holds everything below the second.
SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
RATIOS = (0.0, 1 / 3, 1 / 2, 2 / 3, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0, 3.0)

_WRITTEN_COLUMNS = (
    "tar_file",
    "member_name",
    "original_path",
    "original_key",
    "caption",
    "width",
    "height",
    "format",
    "sha256",
    "aesthetic_score",
    "nsfw_score",
)


@dataclass(frozen=True)
class Picture:
    """A sampled image that has scores. ``place`` is where its bytes are: (output tar, member), or (source tar, index).

    ``key`` is the source key, ``path`` the source tar with the member or the key. ``reason`` is why it was rejected;
    None for a written one. Scores are None where there is no head.
    """

    place: tuple[str, str | int]
    reason: str | None
    key: str
    path: str
    caption: str | None
    width: int
    height: int
    sha256: str
    aesthetic: float | None
    nsfw: float | None

    @property
    def kept(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Example:
    """One row of ``_rejects``: the source tar, the key (None if it is about the tar itself), and what was wrong."""

    source: str
    key: str | None
    detail: str


@dataclass(frozen=True)
class Duplicates:
    """Images with equal bytes. ``copies`` counts those beyond the first of each group; the largest come with 16 hex
    digits of their SHA-256. One in ``share`` digests was looked at: above 1 the counts are estimates."""

    images: int
    groups: int
    copies: int
    largest: list[tuple[str, int]]
    share: int


class Selection:
    """The ``size`` best images by a rank, the least first; equal ones by SHA-256. The same picture comes once."""

    def __init__(self, size: int):
        self._size = size
        self._best: dict[int, tuple[float, int, str, Picture]] = {}

    def offer(self, ranks: npt.NDArray[Any], hashes: Hashes, picture: Callable[[int], Picture]) -> None:
        """Takes rows by their ranks; ``picture`` makes the one with a given row number."""
        rows = np.arange(len(ranks))
        if len(self._best) >= self._size:
            rows = rows[ranks <= max(item[0] for item in self._best.values())]
        rows = rows[np.lexsort((hashes[rows], ranks[rows]))]
        _, first = np.unique(hashes[rows], return_index=True)
        for row in rows[np.sort(first)][: self._size].tolist():
            made, digest = picture(row), int(hashes[row])
            item = (ranks[row].item(), digest, str(made.place), made)
            self._best[digest] = min(item, self._best.get(digest, item), key=lambda found: found[:3])
        for digest in sorted(self._best, key=lambda key: self._best[key][:2])[self._size :]:
            del self._best[digest]

    @property
    def pictures(self) -> list[Picture]:
        return [item[3] for item in sorted(self._best.values(), key=lambda item: item[:3])]


class _AxisSelections:
    def __init__(self, axis: Axis):
        self.axis = axis
        self.lowest, self.highest = Selection(1), Selection(1)
        self.below, self.above = Selection(_NEIGHBOURS), Selection(_NEIGHBOURS)

    def offer(self, scores: Numbers, hashes: Hashes, picture: Callable[[int], Picture]) -> None:
        self.lowest.offer(scores, hashes, picture)
        self.highest.offer(-scores, hashes, picture)
        distance = scores - self.axis.threshold
        for selection, side, ranks in ((self.below, distance < 0, -distance), (self.above, distance >= 0, distance)):
            rows = np.flatnonzero(side)
            selection.offer(ranks[rows], hashes[rows], partial(_picture_at, picture, rows))


@dataclass(frozen=True)
class Sheet:
    """Pictures that are shown together, of one score: over its whole range, or next to the threshold on each side."""

    axis: Axis
    spread: list[Picture]
    below: list[Picture]
    above: list[Picture]


class Facts:
    """Everything that the report says of a dataset. Filled by ``gather``.

    Attributes:
      document: the manifest.
      aesthetic, nsfw: the axes of the scores; None where there is no head.
      grid: the images that have every score.
      unscored: images that reached the filters but lack a score, or whose score is not a number.
      sides, ratios: images by shorter side and by width / height, int64 ``[2, buckets]``: written, rejected.
      formats: images by format, written and rejected; a rejected one's is None if no embedding store tells.
      captions: how many written images have a caption that is not blank.
      examples: for each reason some rows of ``_rejects``.
      store: where the embeddings are; None if they are not there.
    """

    def __init__(self, document: dict[str, Any], axes: tuple[Axis | None, Axis | None], store: EmbeddingStore | None):
        self.document = document
        self.store = store
        self.aesthetic, self.nsfw = axes
        self.grid = Grid(*axes)
        self.unscored = 0
        self.sides = np.zeros((2, len(SIDES)), np.int64)
        self.ratios = np.zeros((2, len(RATIOS)), np.int64)
        self.formats: tuple[Counter[str], Counter[str | None]] = (Counter(), Counter())
        self.captions = 0
        self.tar_reasons: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[bytes, Example]]] = defaultdict(list)
        self._sample = Selection(_SAMPLE)
        self._selections = [_AxisSelections(axis) for axis in axes if axis]
        images = document["images"]["read"]
        self._share = 1 << max(0, (max(images - 1, 0) // MOST_DIGESTS).bit_length())
        self._digests: list[Hashes] = []
        self._lock = threading.Lock()

    @property
    def examples(self) -> dict[str, list[Example]]:
        return {reason: [example for _, example in found] for reason, found in sorted(self._examples.items())}

    @property
    def sheets(self) -> list[Sheet]:
        sheets = []
        for chosen in self._selections:
            score = {AESTHETIC: _aesthetic, NSFW: _nsfw}[chosen.axis.name]
            sample = {
                picture.sha256: picture
                for picture in (*self._sample.pictures, *chosen.lowest.pictures, *chosen.highest.pictures)
            }
            ordered = sorted(sample.values(), key=lambda picture: (score(picture), picture.sha256))
            steps = np.unique(np.linspace(0, len(ordered) - 1, min(_SHEET, len(ordered))).round().astype(int))
            spread = [ordered[step] for step in steps] if ordered else []
            sheets.append(Sheet(chosen.axis, spread, chosen.below.pictures, chosen.above.pictures))
        return sheets

    @property
    def duplicates(self) -> Duplicates:
        digests = np.concatenate(self._digests) if self._digests else np.zeros(0, np.uint64)
        found, counts = np.unique(digests, return_counts=True)
        repeated = np.flatnonzero(counts > 1)
        order = repeated[np.lexsort((found[repeated], -counts[repeated]))][:EXAMPLES]
        largest = [(f"{int(found[i]):016x}", int(counts[i])) for i in order]
        copies = int((counts[repeated] - 1).sum())
        return Duplicates(len(digests), len(repeated) * self._share, copies * self._share, largest, self._share)

    def add_written(self, table: pa.Table) -> None:
        """Takes in a row group of an output Parquet."""
        with self._lock:
            self.formats[0].update(table["format"].to_pylist())
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["caption"])), 0)
            self.captions += table.num_rows - int(pc.sum(pc.fill_null(blank, True)).as_py() or 0)

            def picture(i: int) -> Picture:
                row = table.slice(i, 1).to_pylist()[0]
                return Picture(
                    (row["tar_file"], row["member_name"]),
                    None,
                    _short(row["original_key"]),
                    _short(row["original_path"]),
                    _short(row["caption"]),
                    row["width"],
                    row["height"],
                    row["sha256"],
                    row["aesthetic_score"],
                    row["nsfw_score"],
                )

            self._add(table, 0, picture)

    def add_rejected(self, table: pa.Table, formats: Iterable[str | None]) -> None:
        """Takes in a row group of ``_rejects``, with the format of each image that a filter rejected."""
        with self._lock:
            self._add_examples(table)
            scored = table.filter(pc.is_in(table["reason"], pa.array(_BY_SCORE)))
            self.formats[1].update(formats)

            def picture(i: int) -> Picture:
                row = scored.slice(i, 1).to_pylist()[0]
                return Picture(
                    (row["source"], row["index"]),
                    row["reason"],
                    _short(row["key"]),
                    _short(f"{row['source']}/{row['key']}"),
                    None,
                    row["width"],
                    row["height"],
                    row["sha256"],
                    row["aesthetic_score"],
                    row["nsfw_score"],
                )

            self._add(scored, 1, picture)

    def _add(self, table: pa.Table, rejected: int, picture: Callable[[int], Picture]) -> None:
        width, height = (np.asarray(table[name], np.float64) for name in ("width", "height"))
        short, ratio = np.minimum(width, height), width / height
        for counts, edges, values in ((self.sides, SIDES, short), (self.ratios, RATIOS, ratio)):
            buckets = np.searchsorted(np.array(edges[1:], np.float64), values, side="right")
            counts[rejected] += np.bincount(buckets, minlength=len(edges))
        hashes = leading_bits(table["sha256"])
        self._digests.append(hashes[hashes < (1 << 64) // self._share] if self._share > 1 else hashes)
        scores = {
            axis.name: np.asarray(table[f"{axis.name}_score"].cast(pa.float64()).fill_null(np.nan))
            for axis in (self.aesthetic, self.nsfw)
            if axis
        }
        known = np.flatnonzero(~np.isnan(np.array([*scores.values(), np.zeros(table.num_rows)])).any(axis=0))
        self.unscored += table.num_rows - len(known)
        nothing = np.zeros(table.num_rows)
        self.grid.add(scores.get(AESTHETIC, nothing)[known], scores.get(NSFW, nothing)[known])

        known_picture = partial(_picture_at, picture, known)
        if self._selections:
            self._sample.offer(hashes[known], hashes[known], known_picture)
        for selection in self._selections:
            selection.offer(scores[selection.axis.name][known], hashes[known], known_picture)

    def _add_examples(self, table: pa.Table) -> None:
        columns = [table[name].to_pylist() for name in ("source", "index", "key", "reason", "detail")]
        for source, index, key, reason, detail in zip(*columns, strict=True):
            if index is None:
                self.tar_reasons[reason] += 1
            rank = hashlib.sha256(f"{source}\0{index}".encode()).digest()
            found = self._examples[reason]
            if len(found) < EXAMPLES or rank < found[-1][0]:
                found.append((rank, Example(_short(source), _short(key), _short(detail))))
                found.sort(key=lambda item: item[0])
                del found[EXAMPLES:]


def _picture_at(picture: Callable[[int], Picture], rows: npt.NDArray[np.int64], i: int) -> Picture:
    return picture(int(rows[i]))


def _aesthetic(picture: Picture) -> float:
    return picture.aesthetic if picture.aesthetic is not None else 0.0


def _nsfw(picture: Picture) -> float:
    return picture.nsfw if picture.nsfw is not None else 0.0


def _short(text: str | None) -> Any:
    """What a page shows of a text: its beginning, and U+FFFD for NUL, which HTML cannot hold."""
    if text is None:
        return None
    shown = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "\u2026"
    return shown.replace("\0", "\ufffd")


def leading_bits(digests: pa.ChunkedArray) -> Hashes:
    """The first 64 bits of digests that are given as hex strings without nulls, uint64 ``[n]``."""
    texts = np.array(digests.to_pylist(), "S16")
    digits = texts.view(np.uint8).reshape(len(texts), 16)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0")).astype(np.uint8)
    return (values[:, ::2] << 4 | values[:, 1::2]).copy().view(">u8").astype(np.uint64)[:, 0]


def gather(output_dir: str, embeddings_dir: str | None) -> Facts:
    """Reads a finished dataset.

    Args:
      embeddings_dir: of the embedding store; None for the dataset's own, ``none`` to do without.

    Raises:
      CurateError: there is no finished dataset, or its files cannot be read.
    """
    document = manifest.read(output_dir)
    if document is None:
        raise CurateError(f"{files.join(output_dir, manifest.NAME)} is missing: the dataset is not finished")
    written = [files.join(output_dir, shard["parquet"]) for shard in document["shards"]]
    rejected = [files.join(output_dir, part["parquet"]) for part in document["rejects"]]
    with ThreadPoolExecutor(READERS) as pool:
        axes = [
            _find_axis(document, pool, [*written, *rejected], *axis)
            for axis in ((AESTHETIC, "aesthetic score", True), (NSFW, "NSFW score", False))
        ]
        facts = Facts(document, (axes[0], axes[1]), _find_store(output_dir, document, embeddings_dir))

        def read_written(uri: str) -> None:
            for table in parquet.scan(uri, _WRITTEN_COLUMNS):
                facts.add_written(table)

        def read_rejected(uri: str) -> None:
            for table in parquet.scan(uri, parquet.REJECTS_SCHEMA.names):
                facts.add_rejected(table, _formats(table, facts.store))

        list(pool.map(read_written, written))
        list(pool.map(read_rejected, rejected))
    return facts


def _find_axis(
    document: dict[str, Any], pool: ThreadPoolExecutor, uris: list[str], name: str, title: str, keeps_above: bool
) -> Axis | None:
    """None where the dataset was curated without this head."""
    if not document["models"].get(f"{name}_head"):
        return None
    found = [bounds for bounds in pool.map(lambda uri: parquet.bounds(uri, f"{name}_score"), uris) if bounds]
    whole = (min(low for low, _ in found), max(high for _, high in found)) if found else None
    return make_axis(name, title, keeps_above, document["config"][f"{name}_threshold"], whole)


def _find_store(output_dir: str, document: dict[str, Any], embeddings_dir: str | None) -> EmbeddingStore | None:
    fingerprint = document["models"].get("encoder", {}).get("fingerprint")
    if embeddings_dir == "none" or fingerprint is None:
        return None
    directory = embeddings_dir or files.join(output_dir, manifest.EMBEDDINGS_DIR)
    fitting = (encoder for encoder in find_encoders(directory) if encoder.fingerprint == fingerprint)
    encoder = next(fitting, None)
    return EmbeddingStore(directory, encoder) if encoder is not None else None


def _formats(table: pa.Table, store: EmbeddingStore | None) -> list[str | None]:
    """The format of each image that a filter rejected, as the store knows it: ``_rejects`` does not say."""
    scored = table.filter(pc.is_in(table["reason"], pa.array(_BY_SCORE)))
    sources, indices = scored["source"].to_pylist(), scored["index"].to_pylist()
    known: dict[str, dict[int, str]] = {}
    for source in dict.fromkeys(sources):
        known[source] = {row["index"]: row["format"] for row in stored_rows(store, source, ("index", "format"))}
    return [known[source].get(index) for source, index in zip(sources, indices, strict=True)]


def stored_rows(store: EmbeddingStore | None, source: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Some columns of what a store holds of a source tar; nothing if it holds nothing."""
    if store is None:
        return []
    try:
        return [row for table in parquet.scan(store.path(source), columns) for row in table.to_pylist()]
    except (files.UnavailableError, pa.ArrowInvalid):
        return []

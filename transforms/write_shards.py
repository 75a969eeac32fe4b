"""WriteShards: records to tar + Parquet shards that are exactly full, byte for byte the same on every run."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection, TaggedOutput

from beam_curate import metrics
from beam_curate.errors import CurateError, SourceChangedError
from beam_curate.formats import files, manifest, parquet
from beam_curate.formats.manifest import DALI, Provenance, choose_sidecars
from beam_curate.formats.sidecars import compose, dali_index, index_name, index_tar
from beam_curate.formats.tar import Member, TarError, TarShardWriter, copy_sample, member_name
from beam_curate.records import MEMBER_NAMES, ImageRecord, TarEnd, WrittenRejects, WrittenShard, WrittenSidecar
from transforms.rank_globally import Order, Ranked, RankGlobally
from transforms.unique_image_ids import UniqueImageIds

RECORDS = "records"
SHARDS = "shards"

_logger = logging.getLogger(__name__)


class WriteShardsResult(NamedTuple):
    """``shards``: PCollection of ``WrittenShard``. ``records``: PCollection of every ``ImageRecord`` written, with its
    tar,
    its member's name and, unless ``remove_image_data``, its image. ``manifest``: PCollection of the one manifest."""

    shards: PCollection[WrittenShard]
    records: PCollection[ImageRecord]
    manifest: PCollection[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is decided once for all shards. ``hash`` is the content's, ``token`` is what stands in the file names.

    ``finished`` says that the directory holds this very dataset already.
    """

    hash: str
    token: str
    images: int
    finished: bool


class WriteShards(beam.PTransform[PCollection[ImageRecord], WriteShardsResult]):
    """Writes a dataset: shards, then the manifest that says it is complete.

    Records are ranked by (source URI, index in the tar); shard = rank // ``images_per_tar``, so every shard but the
    last is exactly full. Only records are shuffled: a shard's writer copies its samples, all their members, from the
    source tars and checks every sample's digest on the way. A directory that holds the same finished dataset is left as
    it is.

    Args:
      output_dir: where the shards go.
      images_per_tar: images in each shard but the last.
      deterministic_name: put a hash of the content into file names; otherwise a random one.
      remove_image_data: leave the image's bytes out of the ``records`` of the result.
      verbose: log every shard.
      member_names: ``id`` names members by the image's unique id, ``sequential`` by its global rank.
      write_embeddings: write the embedding column, if the records have embeddings.
      overwrite: replace a finished, different dataset in ``output_dir``.
      provenance: what goes into the manifest and the Parquet metadata.
      rejects: what ``WriteRejects`` gave, for the manifest.
      tars: the tars that were read, for the manifest and for the check that nothing was lost.
      sidecars: which of ``beam_curate.formats.manifest.SIDECARS`` to write beside the shards. They are no part of a
        dataset's identity: asking for others replaces those of a finished dataset, and nothing else.

    Raises:
      ValueError: ``images_per_tar`` below 1, unknown ``member_names`` or unknown ``sidecars``.
      CurateError: at run time, where the counts do not add up, a source has changed since it was read, or
      ``output_dir``
        holds another finished dataset.
    """

    def __init__(
        self,
        output_dir: str,
        images_per_tar: int = 1000,
        deterministic_name: bool = True,
        remove_image_data: bool = False,
        verbose: bool = False,
        *,
        member_names: str = "id",
        write_embeddings: bool = True,
        overwrite: bool = False,
        provenance: Provenance | None = None,
        rejects: PCollection[WrittenRejects] | None = None,
        tars: PCollection[TarEnd] | None = None,
        sidecars: Collection[str] = (),
    ):
        super().__init__()
        if images_per_tar < 1:
            raise ValueError(f"images_per_tar must be at least 1, not {images_per_tar}")
        if member_names not in MEMBER_NAMES:
            raise ValueError(f"member_names must be one of {MEMBER_NAMES}, not {member_names!r}")
        self.settings = Settings(
            output_dir.rstrip("/") if output_dir.strip("/") else output_dir,
            images_per_tar,
            remove_image_data,
            verbose,
            member_names,
            write_embeddings,
            overwrite,
            None if deterministic_name else uuid.uuid4().hex[:12],
            provenance or Provenance(),
            choose_sidecars(sidecars),
        )
        self._rejects = rejects
        self._tars = tars

    def expand(self, records: PCollection[ImageRecord]) -> WriteShardsResult:
        settings = self.settings
        ranked, order = records | "Rank" >> RankGlobally(content)
        plan = order | "Plan" >> beam.ParDo(_MakePlan(settings))
        names = ranked | "UniqueImageIds" >> UniqueImageIds()
        per_tar = settings.images_per_tar
        written = (
            {
                "records": ranked | "RecordsByShard" >> beam.Map(_by_shard, per_tar),
                "names": names | "NamesByShard" >> beam.Map(_by_shard, per_tar),
            }
            | "GroupByShard" >> beam.CoGroupByKey()
            | "Write" >> beam.ParDo(_WriteShard(settings), AsSingleton(plan)).with_outputs(RECORDS, main=SHARDS)
        )
        empty = records.pipeline | "Once" >> beam.Create([None])
        finished = empty | "Finish" >> beam.ParDo(
            _Finish(settings, self._tars is not None),
            AsSingleton(plan),
            AsIter(written[SHARDS]),
            AsIter(self._rejects if self._rejects is not None else empty | "NoRejects" >> beam.FlatMap(_nothing)),
            AsSingleton(
                (self._tars if self._tars is not None else empty | "NoTars" >> beam.FlatMap(_nothing))
                | "SumTars" >> beam.CombineGlobally(_SumTars())
            ),
        )
        return WriteShardsResult(written[SHARDS], written[RECORDS], finished)


@dataclass(frozen=True)
class Settings:
    """What a ``WriteShards`` was asked for."""

    output_dir: str
    images_per_tar: int
    remove_image_data: bool
    verbose: bool
    member_names: str
    write_embeddings: bool
    overwrite: bool
    random_token: str | None
    provenance: Provenance
    sidecars: tuple[str, ...] = ()


def content(record: ImageRecord) -> bytes:
    """What of a record goes into the dataset's hash."""
    texts = json.dumps([record.source, record.index, record.member, record.key, record.format]).encode()
    scores = struct.pack(
        "<ff", *(float("nan") if score is None else score for score in (record.aesthetic_score, record.nsfw_score))
    )
    size = struct.pack("<qq", record.width, record.height)
    return b"".join((texts, size, record.digest, record.sha256, record.embedding or b"", scores))


def dataset_hash(settings: Settings, order: Order) -> str:
    """12 hex digits over ``images_per_tar``, whatever else changes the files' bytes, and every record in order."""
    facts = [
        settings.images_per_tar,
        settings.member_names,
        settings.write_embeddings,
        sorted(settings.provenance.parquet.items()),
    ]
    return hashlib.sha256(json.dumps(facts).encode() + order.digest).hexdigest()[:12]


def _by_shard(ranked: tuple[int, Any], images_per_tar: int) -> tuple[int, tuple[int, Any]]:
    return ranked[0] // images_per_tar, ranked


def _nothing(_: None) -> tuple[()]:
    return ()


class _MakePlan(beam.DoFn):
    def __init__(self, settings: Settings):
        self._settings = settings

    def process(self, order: Order) -> Iterator[Plan]:
        settings = self._settings
        content_hash = dataset_hash(settings, order)
        existing = manifest.read(settings.output_dir)
        same = existing is not None and existing["hash"] == content_hash and settings.random_token is None
        if existing is not None and not same:
            manifest.check_replaceable(settings.output_dir, settings.overwrite)
        metrics.count(metrics.SHARDS_PLANNED, 0 if same else -(-order.total // settings.images_per_tar))
        yield Plan(content_hash, settings.random_token or content_hash, order.total, same)


class _WriteShard(beam.DoFn):
    def __init__(self, settings: Settings):
        self._settings = settings

    def process(
        self, group: tuple[int, dict[str, Iterable[Ranked]]], plan: Plan
    ) -> Iterator[WrittenShard | TaggedOutput[str, ImageRecord]]:
        index, grouped = group
        ranked: list[tuple[int, ImageRecord]] = sorted(grouped["records"], key=lambda pair: pair[0])
        ranked = rename(ranked, dict(grouped["names"]))
        if plan.finished:
            yield finished_shard(self._settings, index)
            return
        shard = find_shard(self._settings, plan, index, ranked)
        if shard is not None:
            metrics.count(metrics.SHARDS_REUSED)
        written, records = shard or write_shard(self._settings, plan, index, ranked)
        metrics.count(metrics.SHARDS_WRITTEN)
        metrics.count(metrics.IMAGES_WRITTEN, written.images)
        if self._settings.verbose:
            _logger.info("wrote %s with %d images", written.tar, written.images)
        yield written
        for record in records:
            yield TaggedOutput(RECORDS, record)


def finished_shard(settings: Settings, index: int) -> WrittenShard:
    """A shard of the finished dataset, as the manifest lists it; an index that it does not list is written."""
    document = manifest.read(settings.output_dir)
    if document is None:
        raise CurateError(f"{settings.output_dir}: the manifest disappeared during the run")
    shard = WrittenShard(index, **document["shards"][index])
    if DALI not in settings.sidecars:
        return shard
    name = index_name(shard.tar)
    facts = manifest.listed(document).get(name)
    known = WrittenSidecar(name, *facts) if facts is not None else publish_index(settings, shard.tar)
    return replace(shard, sidecars=(known,))


def publish_index(settings: Settings, tar: str, members: Iterable[Member] | None = None) -> WrittenSidecar:
    """Publishes a tar's DALI index, made from the tar where its ``members`` are not at hand."""
    name = index_name(tar)
    data = index_tar(files.join(settings.output_dir, tar)) if members is None else dali_index(members)
    with files.publish(files.join(settings.output_dir, name)) as file:
        file.write(data)
    metrics.count(metrics.SIDECARS_WRITTEN)
    return WrittenSidecar(name, file.size, file.sha256)


def rename(ranked: list[tuple[int, ImageRecord]], names: Mapping[int, str]) -> list[tuple[int, ImageRecord]]:
    return [(rank, replace(record, image_id=names[rank]) if rank in names else record) for rank, record in ranked]


# In the Parquet metadata of a shard: which tar it belongs to. The tar is published first, so a Parquet vouches for it.
_TAR_SHA256 = "beam_curate.tar_sha256"


def _shard_names(plan: Plan, index: int) -> tuple[str, str]:
    """The file names of a shard's tar and Parquet."""
    stem = f"images-{plan.token}-{index:06d}"
    return f"{stem}.tar", f"{stem}.parquet"


def _named(settings: Settings, tar: str, rank: int, record: ImageRecord) -> tuple[str, ImageRecord]:
    """The key under which a record's members are written, and the record with its place in the output."""
    key = f"{rank:09d}" if settings.member_names == "sequential" else record.image_id
    return key, replace(record, tar_file=tar, member_name=member_name(key, record.member))


def find_shard(
    settings: Settings, plan: Plan, index: int, ranked: list[tuple[int, ImageRecord]]
) -> tuple[WrittenShard, list[ImageRecord]] | None:
    """A shard that an interrupted run of the same dataset has published whole; None if it must be written.

    Arguments and result as for ``write_shard``. Names carry the content's hash, so a file of that name is either this
    shard or damaged; its Parquet says which digest the tar must have.
    """
    tar, parquet_name = _shard_names(plan, index)
    tar_uri, parquet_uri = files.join(settings.output_dir, tar), files.join(settings.output_dir, parquet_name)
    if not settings.remove_image_data or not files.exists(parquet_uri) or not files.exists(tar_uri):
        return None
    try:
        table = parquet.open_table(parquet_uri)
    except pa.ArrowInvalid:
        return None
    tar_size, tar_sha256 = files.measure(tar_uri)
    if (table.metadata.metadata or {}).get(_TAR_SHA256.encode(), b"").decode() != tar_sha256:
        return None
    if table.metadata.num_rows != len(ranked):
        return None
    size, sha256 = files.measure(parquet_uri)
    beside = (publish_index(settings, tar),) if DALI in settings.sidecars else ()
    shard = WrittenShard(index, tar, parquet_name, len(ranked), tar_size, tar_sha256, size, sha256, beside)
    return shard, [_named(settings, tar, rank, record)[1] for rank, record in ranked]


def write_shard(
    settings: Settings, plan: Plan, index: int, ranked: list[tuple[int, ImageRecord]]
) -> tuple[WrittenShard, list[ImageRecord]]:
    """Publishes one shard's tar, then its Parquet, then its index if asked for.

    Args:
      settings, plan: of the whole dataset.
      index: of the shard.
      ranked: its records with their global ranks, in order.

    Returns:
      The shard, and its records as they are in the output.
    """
    tar, parquet_name = _shard_names(plan, index)
    schema = parquet.dataset_schema(_embedding_size(settings, ranked), settings.provenance.parquet)
    records: list[ImageRecord] = []
    with (
        files.publish(files.join(settings.output_dir, parquet_name)) as parquet_file,
        parquet.RowWriter(parquet_file, schema) as rows,
    ):
        with files.publish(files.join(settings.output_dir, tar)) as tar_file, _Sources() as sources:
            writer = TarShardWriter(tar_file)
            for rank, record in ranked:
                key, named = _named(settings, tar, rank, record)
                texts, image = sources.copy(record, key, writer, not settings.remove_image_data)
                rows.add(_row(named, texts))
                records.append(replace(named, image=image))
            writer.close()
        rows.note({_TAR_SHA256: tar_file.sha256})
    beside = (publish_index(settings, tar, writer.members),) if DALI in settings.sidecars else ()
    shard = WrittenShard(
        index,
        tar,
        parquet_name,
        len(ranked),
        tar_file.size,
        tar_file.sha256,
        parquet_file.size,
        parquet_file.sha256,
        beside,
    )
    return shard, records


def _embedding_size(settings: Settings, ranked: list[tuple[int, ImageRecord]]) -> int | None:
    """The numbers in an embedding; None if the column is not to be written, or no record has one."""
    sizes = {None if record.embedding is None else len(record.embedding) // 2 for _, record in ranked}
    if len(sizes) > 1:
        raise CurateError(f"records of one dataset have embeddings of different sizes: {sizes}")
    return sizes.pop() if settings.write_embeddings else None


class _Sources:
    """Opens source tars one after the other, as a shard's records come."""

    def __enter__(self) -> _Sources:
        self._stack = ExitStack()
        self._uri: str | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def copy(
        self, record: ImageRecord, stem: str, writer: TarShardWriter, keep_image: bool
    ) -> tuple[dict[str, bytes], bytes | None]:
        """Copies a record's sample. Returns its text members, and its image if asked for.

        Raises:
          SourceChangedError: the source is not what it was when it was read.
          CurateError: the storage fails.
        """

        def keep(name: str) -> bool:
            return parquet.is_text_member(name) or (keep_image and name == record.member)

        try:
            file = self._open(record.source)
            file.seek(record.offset)
            digest, kept = copy_sample(
                file, record.offset, record.size, lambda name: member_name(stem, name), writer, keep
            )
        except (files.UnavailableError, TarError, EOFError) as error:
            raise SourceChangedError(
                f"{record.source} has changed since it was read: {error}; start the run again"
            ) from error
        if digest != record.digest:
            raise SourceChangedError(
                f"{record.source} has changed since it was read, at sample {record.key!r}; start the run again"
            )
        image = kept.get(record.member) if keep_image else None
        return {name: data for name, data in kept.items() if parquet.is_text_member(name)}, image

    def _open(self, uri: str) -> BinaryIO:
        if uri != self._uri:
            self._stack.close()
            self._file = self._stack.enter_context(files.open_tar(uri))
            self._uri = uri
        return self._file


def _row(record: ImageRecord, texts: Mapping[str, bytes]) -> dict[str, Any]:
    caption, metadata = parquet.caption_and_metadata(texts)
    return {
        "image_id": record.image_id,
        "tar_file": record.tar_file,
        "member_name": record.member_name,
        "original_path": f"{record.source}/{record.member}",
        "original_key": record.key,
        "caption": caption,
        "width": record.width,
        "height": record.height,
        "format": record.format,
        "sha256": record.sha256.hex(),
        "aesthetic_score": record.aesthetic_score,
        "nsfw_score": record.nsfw_score,
        "embedding": record.embedding,
        "metadata": metadata,
    }


class _SumTars(beam.CombineFn):
    """How many tars were read, and how many images there were in them."""

    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add_input(self, total: tuple[int, int], end: TarEnd) -> tuple[int, int]:
        return total[0] + 1, total[1] + end.images

    def merge_accumulators(self, totals: Iterable[tuple[int, int]]) -> tuple[int, int]:
        tars, images = 0, 0
        for total in totals:
            tars, images = tars + total[0], images + total[1]
        return tars, images

    def extract_output(self, total: tuple[int, int]) -> tuple[int, int]:
        return total


class _Finish(beam.DoFn):
    def __init__(self, settings: Settings, knows_tars: bool):
        self._settings = settings
        self._knows_tars = knows_tars

    def process(
        self,
        _: None,
        plan: Plan,
        shards: Iterable[WrittenShard],
        rejects: Iterable[WrittenRejects],
        tars: tuple[int, int],
    ) -> Iterator[dict[str, Any]]:
        settings, shards = self._settings, list(shards)
        document = compose_manifest(settings, plan, shards, list(rejects), tars if self._knows_tars else None)
        of_dataset = compose(settings.sidecars, document, settings.output_dir)
        beside = [*_facts(of_dataset), *(sidecar for shard in shards for sidecar in shard.sidecars)]
        if beside:
            document["sidecars"] = [asdict(sidecar) for sidecar in sorted(beside, key=lambda sidecar: sidecar.file)]
        published = manifest.finish(settings.output_dir, document, settings.overwrite, of_dataset)
        metrics.count(metrics.SIDECARS_WRITTEN, published)
        yield document


def _facts(of_dataset: Mapping[str, bytes]) -> Iterator[WrittenSidecar]:
    for name, data in of_dataset.items():
        yield WrittenSidecar(name, len(data), hashlib.sha256(data).hexdigest())


def compose_manifest(
    settings: Settings,
    plan: Plan,
    shards: list[WrittenShard],
    rejects: list[WrittenRejects],
    tars: tuple[int, int] | None,
) -> dict[str, Any]:
    """The manifest, once everything adds up.

    Args:
      tars: how many tars were read and how many images they had; None where only the sink is used.

    Raises:
      CurateError: an image was lost, or counted twice.
    """
    shards = sorted(shards, key=lambda shard: shard.index)
    rejects = sorted(rejects, key=lambda part: part.index)
    written = sum(shard.images for shard in shards)
    reasons: dict[str, int] = {}
    for part in rejects:
        for reason, count in part.images:
            reasons[reason] = reasons.get(reason, 0) + count
    rejected = sum(reasons.values())
    tars_read, read = tars if tars is not None else (None, written + rejected)
    if written != plan.images or read != written + rejected:
        raise CurateError(
            f"the counts do not add up: {read} images read, {plan.images} kept, {written} written, {rejected} rejected"
        )
    provenance = settings.provenance
    return {
        "format_version": manifest.FORMAT_VERSION,
        "input": list(provenance.input),
        "config": {
            "images_per_tar": settings.images_per_tar,
            "deterministic_name": settings.random_token is None,
            "member_names": settings.member_names,
            "write_embeddings": settings.write_embeddings,
            **provenance.config,
        },
        "models": provenance.models,
        "tars": {"read": tars_read, "rejected": sum(part.tars for part in rejects)},
        "images": {"read": read, "written": written, "rejected": reasons},
        "hash": plan.hash,
        "shards": [
            {name: value for name, value in asdict(shard).items() if name not in ("index", "sidecars")}
            for shard in shards
        ],
        "rejects": [
            {"parquet": part.parquet, "rows": part.rows, "parquet_bytes": part.bytes, "parquet_sha256": part.sha256}
            for part in rejects
        ],
    }

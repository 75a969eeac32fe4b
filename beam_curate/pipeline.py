"""The chain: read, embed, score, filter, write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

import beam_curate
from beam_curate.errors import CurateError, UsageError
from beam_curate.formats import files
from beam_curate.formats.manifest import EMBEDDINGS_DIR, Provenance
from beam_curate.formats.store import EmbeddingStore, Encoder, find_encoders
from beam_curate.models.clip import ClipModelHandler
from beam_curate.models.heads import AESTHETIC, NSFW, HeadSpec, find_head
from beam_curate.options import CurateOptions, runs_on_dataflow
from beam_curate.records import SourceTar
from transforms import (
    EmbedImages,
    FilterAesthetic,
    FilterNsfw,
    MatchTarShards,
    ReadTarShards,
    ScoreEmbeddings,
    WriteRejects,
    WriteShards,
)
from transforms.match_tar_shards import split_patterns


@dataclass(frozen=True)
class Models:
    """What the options chose: the encoder, its store, and the heads."""

    handler: ClipModelHandler
    encoder: Encoder
    store: EmbeddingStore | None
    aesthetic: HeadSpec | None
    nsfw: HeadSpec | None


def find_models(options: CurateOptions) -> Models:
    """Resolves the model flags, before anything runs.

    Raises:
      UsageError: a flag names what is not there or does not fit.
      CurateError: weights cannot be had.
    """
    handler = ClipModelHandler(
        options.clip_model,
        options.clip_pretrained,
        device=choose_device(options),
        precision=options.precision,
        batch_size=options.inference_batch_size,
        max_image_pixels=options.max_image_pixels,
    )
    checkpoint = handler.checkpoint
    aesthetic, nsfw = (
        find_head(kind, choice, checkpoint.clip_model, checkpoint.source, checkpoint.is_file, checkpoint.embedding_size)
        for kind, choice in ((AESTHETIC, options.aesthetic_head), (NSFW, options.nsfw_head))
    )
    directory = find_store(options)
    encoder = choose_encoder(handler, options, directory)
    store = EmbeddingStore(directory, encoder) if directory is not None else None
    return Models(handler, encoder, store, aesthetic, nsfw)


def find_store(options: CurateOptions) -> str | None:
    """The directory of the embedding store; None if it is off."""
    if options.embeddings_dir == "none":
        return None
    own = files.join(options.output_dir, EMBEDDINGS_DIR)
    directory: str = options.embeddings_dir or own
    if directory != own and f"{directory.rstrip('/')}/".startswith(f"{options.output_dir.rstrip('/')}/"):
        raise UsageError(f"--embeddings_dir: {directory} is inside --output_dir; choose a place outside, or leave it")
    return directory


def choose_encoder(handler: ClipModelHandler, options: CurateOptions, directory: str | None) -> Encoder:
    """The encoder to use: one that has a store already, if it is what was asked for.

    So an earlier run's embeddings serve where its weights cannot be had, or where there is no GPU any more.

    Raises:
      CurateError: the weights cannot be had, and the store does not say whose embeddings would do.
    """
    stored = list(find_encoders(directory)) if directory is not None else []
    free = options.device == "auto" and options.precision == "auto"
    try:
        asked = handler.encoder()
    except CurateError:
        adopted = _adopt(handler, stored, free)
        if adopted is None:
            raise
        return adopted
    if asked.fingerprint in {encoder.fingerprint for encoder in stored}:
        return asked
    return _adopt(handler, stored, free) or asked


def _adopt(handler: ClipModelHandler, stored: list[Encoder], free: bool) -> Encoder | None:
    fitting = [encoder for encoder in stored if handler.stands_for(encoder, free)]
    if len(fitting) != 1:
        return None
    handler.adopt(fitting[0])
    return fitting[0]


def build(root: beam.Pipeline, options: CurateOptions, models: Models) -> None:
    """Adds the whole chain to a pipeline."""
    kept, rejects, tars = (
        root
        | "MatchTarShards" >> MatchTarShards(options.input, options.limit)
        | "ReadEmbedScore" >> ReadEmbedScore(models).with_resource_hints(**find_hints(options))
    )
    dropped = [rejects]
    if models.aesthetic is not None:
        kept, below = kept | "FilterAesthetic" >> FilterAesthetic(options.aesthetic_threshold, with_rejects=True)
        dropped.append(below)
    if models.nsfw is not None:
        kept, above = kept | "FilterNsfw" >> FilterNsfw(options.nsfw_threshold, with_rejects=True)
        dropped.append(above)
    rejected = (
        dropped | "AllRejects" >> beam.Flatten() | "WriteRejects" >> WriteRejects(options.output_dir, options.overwrite)
    )
    kept | "WriteShards" >> WriteShards(
        options.output_dir,
        options.images_per_tar,
        options.deterministic_name,
        remove_image_data=True,
        verbose=options.verbose,
        member_names=options.member_names,
        write_embeddings=options.write_embeddings,
        overwrite=options.overwrite,
        provenance=describe(options, models),
        rejects=rejected,
        tars=tars,
        sidecars=[] if options.sidecars == "none" else options.sidecars.split(","),
    )


class ReadEmbedScore(beam.PTransform[PCollection[SourceTar], Any]):
    """From tars to scored records. Runners fuse it into one stage: it alone passes image bytes from step to step.

    So this is what resource hints are for: its steps share them, and the rest of the job goes to plain workers.
    """

    def __init__(self, models: Models):
        super().__init__()
        self._models = models

    def expand(self, tars: PCollection[SourceTar]) -> tuple[PCollection[Any], PCollection[Any], PCollection[Any]]:
        models = self._models
        records, rejects, ends = (
            tars
            | "ReadTarShards" >> ReadTarShards(models.store)
            | "EmbedImages" >> EmbedImages(models.handler, models.store, with_rejects=True)
        )
        return records | "ScoreEmbeddings" >> ScoreEmbeddings(models.aesthetic, models.nsfw), rejects, ends


def find_hints(options: CurateOptions) -> dict[str, str]:
    """The resource hints that were asked for. Runners that know none ignore them."""
    return {name: value for name in ("accelerator", "min_ram") if (value := getattr(options, name))}


def choose_device(options: CurateOptions) -> str:
    """``--device``, where ``auto`` follows the machines that will embed: Dataflow's, or else this one."""
    if options.device == "auto" and options.accelerator and runs_on_dataflow(options):
        return "cuda"
    device: str = options.device
    return device


def describe(options: CurateOptions, models: Models) -> Provenance:
    """What the output says about where it comes from. Nothing in it changes from run to run."""
    encoder = models.encoder
    document: dict[str, object] = {
        "encoder": {
            "clip_model": encoder.clip_model,
            "clip_pretrained": encoder.clip_pretrained,
            "weights_sha256": encoder.weights_sha256,
            "precision": encoder.precision,
            "embedding_size": encoder.embedding_size,
            "fingerprint": encoder.fingerprint,
        }
    }
    metadata = {
        "version": beam_curate.__version__,
        "encoder": encoder.clip_model,
        "pretrained": encoder.clip_pretrained,
        "weights_sha256": encoder.weights_sha256,
        "precision": encoder.precision,
    }
    for kind, head, threshold in (
        (AESTHETIC, models.aesthetic, options.aesthetic_threshold),
        (NSFW, models.nsfw, options.nsfw_threshold),
    ):
        document[f"{kind}_head"] = {"name": head.name, "sha256": head.sha256} if head is not None else None
        if head is not None:
            metadata |= {
                f"{kind}_head": head.name,
                f"{kind}_head_sha256": head.sha256,
                f"{kind}_threshold": repr(threshold),
            }
    names = (
        "limit",
        "clip_model",
        "clip_pretrained",
        "max_image_pixels",
        "aesthetic_head",
        "nsfw_head",
        "aesthetic_threshold",
        "nsfw_threshold",
    )
    return Provenance(
        tuple(split_patterns(options.input)),
        {
            **{name: getattr(options, name) for name in names},
            "precision": encoder.precision,
            "version": beam_curate.__version__,
        },
        document,
        {f"beam_curate.{name}": value for name, value in metadata.items()},
    )

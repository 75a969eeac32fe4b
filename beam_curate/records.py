"""The data that flows through the pipeline, as frozen dataclasses.

What leaves the embedding stage is small: no record holds image bytes across a shuffle. A record says where its sample
lies in the source tar (``source``, ``offset``, ``size``); the writer copies the bytes from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Why an image or a tar is not in the output. The first two are about a tar, the others about one image.
UNREADABLE_TAR = "unreadable_tar"
TRUNCATED_TAR = "truncated_tar"
NO_IMAGE = "no_image"
SPLIT_SAMPLE = "split_sample"
UNDECODABLE = "undecodable"
TOO_MANY_PIXELS = "too_many_pixels"
MODEL_ERROR = "model_error"
BELOW_AESTHETIC_THRESHOLD = "below_aesthetic_threshold"
ABOVE_NSFW_THRESHOLD = "above_nsfw_threshold"

# How members are named in the output: by the image's unique id, or by its global rank.
MEMBER_NAMES = ("id", "sequential")


@dataclass(frozen=True)
class SourceTar:
    """One input tar. ``size`` is in bytes, ``modified`` in seconds since the epoch.

    Where the storage keeps no modification time, ``modified`` is 0 and ``checksum`` is what it knows of the content.
    """

    uri: str
    size: int
    modified: float
    checksum: str = ""


@dataclass(frozen=True)
class Sample:
    """One WebDataset sample that has an image.

    Attributes:
      source: URI of the tar.
      index: position among the tar's samples, from 0.
      key: the source key: member names up to the first dot of their last path part.
      image_id: ``key`` made safe for a file name; not yet unique in the dataset.
      member: name of the image's member.
      offset, size: the sample's span in the (decompressed) tar, in bytes: from its first member's header to the end of
        its last member's padding.
      digest: SHA-256 over the names, sizes and bytes of all members.
      image: the encoded image, as it stands in the tar.
    """

    source: str
    index: int
    key: str
    image_id: str
    member: str
    offset: int
    size: int
    digest: bytes
    image: bytes


@dataclass(frozen=True)
class ImageRecord:
    """An embedded image: under 4 KB, without the image's bytes.

    The first fields are those of :class:`Sample`. ``width`` and ``height`` are upright pixels, ``format`` is lower-case
    (``jpeg``), ``sha256`` the digest of the encoded image, ``embedding`` a little-endian float16 vector with L2 norm 1.
    The last four are known once the image is written: its final unique ``image_id``, the output tar's file name and the
    member's name in it, and the encoded image unless ``remove_image_data``.
    """

    source: str
    index: int
    key: str
    image_id: str
    member: str
    offset: int
    size: int
    digest: bytes
    sha256: bytes
    width: int
    height: int
    format: str
    embedding: bytes | None = None
    aesthetic_score: float | None = None
    nsfw_score: float | None = None
    tar_file: str | None = None
    member_name: str | None = None
    image: bytes | None = None

    @property
    def vector(self) -> npt.NDArray[np.float16]:
        """The embedding, float16 ``[d]``, L2 norm 1."""
        if self.embedding is None:
            raise ValueError(f"{self.source}: {self.member} has no embedding; apply EmbedImages first")
        return np.frombuffer(self.embedding, dtype="<f2")


@dataclass(frozen=True)
class Rejection:
    """An image or, with ``index`` and ``key`` None, a tar that is not in the output, and why."""

    source: str
    index: int | None
    key: str | None
    stage: str
    reason: str
    detail: str
    width: int | None = None
    height: int | None = None
    sha256: bytes | None = None
    aesthetic_score: float | None = None
    nsfw_score: float | None = None


@dataclass(frozen=True)
class TarEnd:
    """Ends a tar. ``images`` counts the entries that have an index: samples, with or without image."""

    tar: SourceTar
    images: int
    from_store: bool = False


# What ReadTarShards emits: for each tar its entries in order, then one TarEnd. Image records come from an earlier run's
# embedding store.
TarEntry = Sample | ImageRecord | Rejection | TarEnd


@dataclass(frozen=True)
class WrittenSidecar:
    """One published sidecar. ``file`` is relative to the output directory, ``sha256`` in hex."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WrittenShard:
    """One published output shard. File names are relative to the output directory, digests are hex SHA-256.

    ``sidecars`` are those that belong to this shard alone.
    """

    index: int
    tar: str
    parquet: str
    images: int
    tar_bytes: int
    tar_sha256: str
    parquet_bytes: int
    parquet_sha256: str
    sidecars: tuple[WrittenSidecar, ...] = ()


@dataclass(frozen=True)
class WrittenRejects:
    """One published part of ``_rejects``, with its rows about images counted by reason and its rows about tars."""

    index: int
    parquet: str
    rows: int
    bytes: int
    sha256: str
    images: tuple[tuple[str, int], ...]
    tars: int

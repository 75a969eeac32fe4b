"""MatchTarShards: globs, directories and paths to source tars, in one global order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
from apache_beam.io.filesystem import FileMetadata
from apache_beam.pvalue import PBegin, PCollection

from beam_curate import metrics
from beam_curate.errors import CurateError
from beam_curate.formats import files
from beam_curate.formats.tar import is_image_name
from beam_curate.records import SourceTar


def split_patterns(value: str) -> list[str]:
    """A comma-separated list of patterns, as ``--input`` takes it."""
    return [pattern.strip() for pattern in value.split(",") if pattern.strip()]


def match_tars(patterns: Sequence[str], limit: int | None = None) -> list[SourceTar]:
    """The tars that match any of the patterns, each once, sorted by URI; the first ``limit`` of them.

    Raises:
      CurateError: a pattern matches nothing, or nothing but pictures.
    """
    found: dict[str, SourceTar] = {}
    for pattern in patterns:
        tars = _match(pattern)
        if not tars:
            hint = "" if files.is_glob(pattern) else "; a directory stands for the .tar files in it"
            raise CurateError(f"--input: nothing matches {pattern}{hint}")
        if all(is_image_name(tar.uri) for tar in tars):
            raise CurateError(f"--input: {pattern} matches pictures; what is asked for are the tars that they are in")
        found.update((tar.uri, tar) for tar in tars)
    return [found[uri] for uri in sorted(found)][:limit]


def _match(pattern: str) -> list[SourceTar]:
    if not files.is_glob(pattern):
        return _find(pattern.rstrip("/") + "/*.tar") or _find(pattern)
    return _find(pattern)


def _find(pattern: str) -> list[SourceTar]:
    return [_identify(file) for file in files.find(pattern)]


def _identify(file: FileMetadata) -> SourceTar:
    """A tar as it is now. Where the storage keeps no modification time, a checksum says whether it has changed."""
    modified = float(file.last_updated_in_seconds or 0)
    return SourceTar(file.path, int(file.size_in_bytes), modified, "" if modified else files.checksum(file.path))


class MatchTarShards(beam.PTransform[PBegin, PCollection[SourceTar]]):
    """Lists the source tars, on a worker, and spreads them over all workers.

    Args:
      patterns: globs, directories (their ``*.tar``) or paths on any Beam file system; a string may hold several,
      separated
        by commas.
      limit: take only the first so many tars, in order.

    Raises:
      ValueError: no pattern, or a limit below 1.
      CurateError: at run time, where a pattern matches nothing.
    """

    def __init__(self, patterns: str | Iterable[str], limit: int | None = None):
        super().__init__()
        self._patterns = split_patterns(patterns) if isinstance(patterns, str) else list(patterns)
        if not self._patterns:
            raise ValueError("no input pattern")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._limit = limit

    def expand(self, root: PBegin) -> PCollection[SourceTar]:
        return (
            root
            | "Patterns" >> beam.Create([(tuple(self._patterns), self._limit)])
            | "Match" >> beam.ParDo(_Match())
            | "SpreadOverWorkers" >> beam.Reshuffle()
        )


class _Match(beam.DoFn):
    def process(self, element: tuple[tuple[str, ...], int | None]) -> Iterator[SourceTar]:
        patterns, limit = element
        tars = match_tars(patterns, limit)
        metrics.count(metrics.TARS_MATCHED, len(tars))
        yield from tars

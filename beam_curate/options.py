"""The command line: every flag, its help, its validation."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser

from beam_curate.errors import UsageError
from beam_curate.formats.files import GLOB_CHARACTERS
from beam_curate.records import MEMBER_NAMES

# Runs in this process, needs no download, and does the same on every machine.
DEFAULT_RUNNER = "FnApiRunner"
_LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner", "SwitchingDirectRunner", "PrismRunner")


def _at_least(kind: Callable[[str], Any], least: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return parse


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


class CurateOptions(PipelineOptions):
    """The flags of ``python -m beam_curate``, beside Beam's own."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        count = _at_least(int, 1)
        group = parser.add_argument_group("input and output")
        group.add_argument(
            "--input",
            metavar="TARS",
            help="source tars: globs, directories (their *.tar) or paths, separated by commas; required",
        )
        group.add_argument("--output_dir", metavar="DIR", help="where the shards go; required")
        group.add_argument(
            "--images_per_tar",
            type=count,
            default=1000,
            metavar="N",
            help="images in each output shard, exact for all but the last (default: 1000)",
        )
        _add_switch(
            group, "deterministic_name", True, "put a hash of the content into file names; otherwise a random one"
        )
        group.add_argument(
            "--member_names",
            choices=MEMBER_NAMES,
            default="id",
            help="name members by their source key, or by the image's global rank (default: id)",
        )
        _add_switch(group, "write_embeddings", True, "write the embedding column")
        group.add_argument(
            "--embeddings_dir",
            metavar="DIR",
            help="the embedding store; none turns it off (default: {output_dir}/_embeddings)",
        )
        group.add_argument("--limit", type=count, metavar="N", help="read only the first N source tars, in order")
        group.add_argument(
            "--overwrite", action="store_true", help="replace a finished, different dataset in --output_dir"
        )
        group = parser.add_argument_group("model")
        group.add_argument(
            "--clip_model",
            default="ViT-L-14",
            metavar="NAME",
            help="any open_clip model, or demo for a tiny built-in one (default: ViT-L-14)",
        )
        group.add_argument(
            "--clip_pretrained",
            default="openai",
            metavar="WEIGHTS",
            help="an open_clip tag, an hf-hub: name, or the path or URI of a checkpoint (default: openai)",
        )
        group.add_argument(
            "--device",
            choices=("auto", "cuda", "cpu"),
            default="auto",
            help="where the model runs; auto is cuda where there is one (default: auto)",
        )
        group.add_argument(
            "--precision",
            choices=("auto", "fp16", "fp32"),
            default="auto",
            help="auto is fp16 on cuda, fp32 on cpu (default: auto)",
        )
        group.add_argument(
            "--inference_batch_size",
            type=count,
            default=256,
            metavar="N",
            help="images in a micro-batch; short ones are padded (default: 256)",
        )
        group.add_argument(
            "--max_image_pixels",
            type=count,
            default=100_000_000,
            metavar="N",
            help="larger images are rejected before they are decoded (default: 100000000)",
        )
        group = parser.add_argument_group("scores and filters")
        heads = (
            "a public head's name, the path or URI of a weights file, none, or auto to follow the model (default: auto)"
        )
        group.add_argument("--aesthetic_head", default="auto", metavar="HEAD", help=heads)
        group.add_argument("--nsfw_head", default="auto", metavar="HEAD", help=heads)
        group.add_argument(
            "--aesthetic_threshold",
            type=_finite,
            default=0.5,
            metavar="X",
            help="keep images with aesthetic score >= X (default: 0.5)",
        )
        group.add_argument(
            "--nsfw_threshold",
            type=_finite,
            default=0.5,
            metavar="X",
            help="keep images with NSFW score < X (default: 0.5)",
        )
        group = parser.add_argument_group("behaviour")
        _add_switch(group, "report", True, "write _report.html at the end, a page that shows what became of the images")
        group.add_argument("--strict", action="store_true", help="exit with 1 if any tar or image could not be read")
        group.add_argument("--verbose", action="store_true", help="debug logging")


def _add_switch(group: Any, name: str, default: bool, text: str) -> None:
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(f"--{name}", dest=name, action="store_true", default=default, help=f"{text} (default: on)")
    switch.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse(argv: Sequence[str]) -> CurateOptions:
    """The options of a command line.

    Raises:
      UsageError: in one line that names the flag.
    """
    parser = _Parser(
        prog="beam-curate",
        allow_abbrev=False,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    CurateOptions._add_argparse_args(parser)
    known, rest = parser.parse_known_args(list(argv))
    for flag in ("input", "output_dir"):
        if not getattr(known, flag):
            raise UsageError(f"--{flag} is required")
    for flag in ("output_dir", "embeddings_dir"):
        if any(character in (getattr(known, flag) or "") for character in GLOB_CHARACTERS):
            raise UsageError(
                f"--{flag}: {getattr(known, flag)} has one of {GLOB_CHARACTERS} in it, which Beam takes for a glob"
            )
    check_beam_flags(rest)
    options = CurateOptions(list(argv))
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = DEFAULT_RUNNER
    return options


def check_beam_flags(arguments: list[str]) -> None:
    """Beam drops flags that it does not know; a misspelt one would go unnoticed.

    Runners other than the local ones may take flags that only their job server knows.

    Raises:
      UsageError: one is unknown.
    """
    parser = _Parser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    known, unknown = parser.parse_known_args(arguments)
    ours = [action.option_strings[0] for action in parser._actions if action.option_strings]
    runner = (known.runner or DEFAULT_RUNNER).rpartition(".")[2]
    for argument in unknown:
        name = argument.partition("=")[0]
        close = difflib.get_close_matches(name, ours, 1, 0.8)
        if close or runner in _LOCAL_RUNNERS or not name.startswith("--"):
            raise UsageError(f"{name}: no such flag" + (f"; did you mean {close[0]}?" if close else ""))


_DESCRIPTION = """\
Curates image datasets: reads WebDataset tars, embeds every image with CLIP, scores aesthetics and NSFW, filters, and
writes tar + Parquet shards of exact size."""

_EPILOG = """\
example:
  beam-curate --input='photos/*.tar' --output_dir=curated --aesthetic_threshold=5.5 --nsfw_threshold=0.3

Every Apache Beam pipeline option works too, --runner first of all (default: FnApiRunner, on this machine).
Exit codes: 0 done, 1 the run failed, 2 wrong usage."""

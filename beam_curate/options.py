"""The command line: every flag, its help, its validation."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.runner import create_runner

from beam_curate.errors import UsageError
from beam_curate.formats.files import GLOB_CHARACTERS, is_glob
from beam_curate.formats.manifest import SIDECARS, choose_sidecars
from beam_curate.records import MEMBER_NAMES

# Runs in this process, needs no download, and does the same on every machine.
DEFAULT_RUNNER = "FnApiRunner"
DATAFLOW_RUNNER = "DataflowRunner"
PROGRESS = ("auto", "bar", "log", "none")
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


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _like(pattern: str, form: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return parse


# As in the documentation of Dataflow's right fitting; what follows type and count is passed on as it is.
_ACCELERATOR = _like(r"type:[a-z0-9-]+;count:[1-9][0-9]*(;[a-z0-9_:.-]+)*", "type:NAME;count:N, with more after a ;")
_MEMORY = _like(r"[0-9]+(\.[0-9]+)?([KMGT]i?)?B", "24GB")


def _sidecars(text: str) -> str:
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    try:
        return ",".join(choose_sidecars(names)) or "none"
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
        group.add_argument(
            "--sidecars",
            type=_sidecars,
            default="none",
            metavar="NAMES",
            help=f"files beside the shards for particular loaders, of {', '.join(SIDECARS)} (default: none)",
        )
        group.add_argument("--limit", type=count, metavar="N", help="read only the first N source tars, in order")
        _add_switch(group, "overwrite", False, "replace a finished, different dataset in --output_dir")
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
        group = parser.add_argument_group("workers, on runners that give out machines by hints, such as Dataflow")
        group.add_argument(
            "--accelerator",
            type=_ACCELERATOR,
            metavar="HINT",
            help="the GPU of the workers that embed, for example type:nvidia-l4;count:1;install-nvidia-driver",
        )
        group.add_argument(
            "--min_ram",
            type=_MEMORY,
            metavar="SIZE",
            help="the least memory of the workers that embed, for example 24GB",
        )
        group = parser.add_argument_group("behaviour")
        _add_switch(group, "report", True, "write _report.html at the end, a page that shows what became of the images")
        _add_switch(group, "strict", False, "exit with 1 if any tar or image could not be read")
        group.add_argument(
            "--progress",
            choices=PROGRESS,
            default="auto",
            help="a live line, a line every 30 s, or nothing; auto is a live line on a terminal (default: auto)",
        )
        _add_switch(group, "verbose", False, "debug logging")


def _add_switch(group: Any, name: str, default: bool, text: str) -> None:
    """``--name``; with ``default``, ``--noname`` too. Templates say ``--name=true`` and ``--name=false``."""
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(
        f"--{name}",
        nargs="?",
        const=True,
        type=_boolean,
        metavar="true|false",
        default=default,
        help=text + (" (default: on)" if default else ""),
    )
    if default:
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
    check_beam_flags(rest)
    for flag in ("input", "output_dir"):
        if not getattr(known, flag):
            raise UsageError(f"--{flag} is required")
    for flag in ("output_dir", "embeddings_dir"):
        if is_glob(getattr(known, flag) or ""):
            raise UsageError(
                f"--{flag}: {getattr(known, flag)} has one of {GLOB_CHARACTERS} in it, which Beam takes for a glob"
            )
    options = CurateOptions(list(argv))
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = DEFAULT_RUNNER
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError):
        raise UsageError(f"--runner: Beam has no runner {standard.runner!r}") from None
    if (is_dry_run(options) or template_location(options)) and not runs_on_dataflow(options):
        raise UsageError(f"--dry_run and --template_location need --runner={DATAFLOW_RUNNER}; others would run the job")
    return options


def runs_on_dataflow(options: PipelineOptions) -> bool:
    return _runner_name(options.view_as(StandardOptions).runner) == DATAFLOW_RUNNER


def runs_elsewhere(options: PipelineOptions) -> bool:
    """Whether the job goes on without the process that submitted it."""
    runner = _runner_name(options.view_as(StandardOptions).runner)
    return runner not in _LOCAL_RUNNERS and options.view_as(PortableOptions).job_endpoint != "embed"


def is_dry_run(options: PipelineOptions) -> bool:
    """Whether the job is to be built, to see that it can be, and not to be submitted."""
    return bool(options.view_as(TestOptions).dry_run)


def template_location(options: PipelineOptions) -> str | None:
    """Where the job is to be written instead of being submitted; a template's launcher asks for it."""
    location: str | None = options.view_as(GoogleCloudOptions).template_location
    return location


def _runner_name(runner: str | None) -> str:
    """The class name of a runner, which may be given by its whole path."""
    return (runner or DEFAULT_RUNNER).rpartition(".")[2]


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
    runner = _runner_name(known.runner)
    for argument in unknown:
        if not argument.startswith("-"):
            raise UsageError(f"{argument}: not a flag; quote a glob, and separate paths with commas")
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
Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130 stopped with Ctrl-C."""

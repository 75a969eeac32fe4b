"""``python -m beam_curate``: options, pipeline, summary, exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.runners.runner import PipelineState

from beam_curate import beam_fixes, credentials, destination, metrics, options, progress
from beam_curate.errors import CurateError, SourceChangedError, UsageError
from beam_curate.formats import files, manifest, parquet
from beam_curate.records import ABOVE_NSFW_THRESHOLD, BELOW_AESTHETIC_THRESHOLD

# A runner reports an error of a worker as text: a traceback, or several, with this line in it.
_CURATE_ERROR = re.compile(
    r"beam_curate\.(?:errors|formats\.files)\.(\w+): (.+?)(?: \[while running |\\n|$)", re.MULTILINE
)

# An error that ends the run is shown once, at its end; the others count their retries and report on their processes.
_LOUD = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker",
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.utils.retry",
    "apache_beam.utils.subprocess_server",
    "huggingface_hub",
)

# What shells report of a program that Ctrl-C ended.
INTERRUPTED = 130
_PRISM = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}"
_FIRST_FAILURES = 5
_WHILE_RUNNING = re.compile(r" \[while running .*$", re.DOTALL)


def run(argv: Sequence[str]) -> dict[str, Any] | None:
    """Runs the pipeline that a command line describes.

    Returns:
      The manifest of what it wrote; None where the job was only built, for a template or with ``--dry_run``.

    Raises:
      UsageError: the command line is wrong.
      CurateError: the run failed, for a reason that a person can act on.
    """
    chosen = options.parse(argv)
    # Loads torch: seconds that a wrong command line need not wait for.
    from beam_curate import pipeline

    _set_up_logging(chosen.verbose)
    credentials.check(chosen)
    FileSystems.set_options(chosen)
    beam_fixes.keep_elements_whole()
    models = pipeline.find_models(chosen)
    root = beam.Pipeline(options=chosen)
    pipeline.build(root, chosen, models)
    if options.is_dry_run(chosen):
        root.run()
        print("the job was built; nothing was run")
        return None
    started = time.monotonic()
    with contextlib.ExitStack() as held:
        held.enter_context(destination.claimed(chosen.output_dir))
        destination.check(chosen.output_dir)
        if models.store is not None:
            held.enter_context(destination.sharing(models.store.embeddings_dir))
            models.store.describe()
        try:
            with progress.shown(chosen.progress) as shown:
                result = root.run()
                if shown is not None:
                    shown.follow(result)
                state = result.wait_until_finish()
        except Exception as error:
            kind, _ = find_error(error)
            if kind == SourceChangedError.__name__:
                # Shards that are written already would belong to no dataset.
                manifest.clear(chosen.output_dir)
            if kind is None and (advice := _advice(error)):
                raise CurateError(f"--runner: {advice} ({error.__cause__ or error})") from error
            raise
        if options.template_location(chosen):
            print(f"the job was written to {options.template_location(chosen)}; nothing was run")
            return None
        if state not in (None, PipelineState.DONE):
            raise CurateError(f"the runner reports {state}")
        document = manifest.read(chosen.output_dir)
        if document is None:
            missing = files.join(chosen.output_dir, manifest.NAME)
            raise CurateError(f"the runner reports {state}, but {missing} is missing")
        print(summary(document, metrics.totals(result.metrics()), chosen.output_dir, time.monotonic() - started))
        if chosen.report:
            write_report(chosen.output_dir, chosen.embeddings_dir)
    if chosen.strict:
        check_strict(document, chosen.output_dir)
    return document


def _advice(error: Exception) -> str | None:
    """What to do where Beam cannot download what a runner needs; None if that is not what went wrong."""
    if "remote prism binary" in str(error):
        return f"Beam cannot download Prism; build it with go install {_PRISM} and give --prism_location"
    if "remote job server jar" in str(error):
        return "Beam cannot download the job server; give its jar as --flink_job_server_jar or --spark_job_server_jar"
    return None


def _set_up_logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    if verbose:
        return
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (
        # RunInference says so of every model wherever an optional dependency of its is missing.
        message.startswith("Resource module is not available")
        # What a job service passes on from its workers; the error that ends the run is shown at its end.
        or (record.name == "root" and (_CURATE_ERROR.search(message) or message.startswith("Error running pipeline")))
        or record.name == "PrismRunner"
    )


def summary(document: dict[str, Any], counted: dict[str, int], output_dir: str, seconds: float) -> str:
    """What a person wants to know at the end of a run."""
    images, tars = document["images"], document["tars"]
    lines = [
        f"{_counted(images['read'], 'image')} read from {_counted(tars['read'], 'tar')}, {images['written']} kept, "
        f"{_counted(len(document['shards']), 'shard')} in {output_dir}"
    ]
    lines += [f"  {count} {reason}" for reason, count in sorted(images["rejected"].items())]
    if tars["rejected"]:
        lines.append(f"  {_counted(tars['rejected'], 'tar')} could not be read to the end")
    embedded, stored = counted.get(metrics.IMAGES_EMBEDDED, 0), counted.get(metrics.IMAGES_FROM_STORE, 0)
    lines.append(
        f"{_counted(embedded, 'image')} embedded, {stored} from the embedding store; "
        f"{images['read'] / seconds:.0f} images/s"
    )
    if document["shards"] and not counted.get(metrics.SHARDS_WRITTEN):
        sidecars = counted.get(metrics.SIDECARS_WRITTEN, 0)
        written = f"wrote {_counted(sidecars, 'sidecar')}" if sidecars else "nothing was written"
        lines.append(f"this dataset was there already; {written}")
    return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def write_report(output_dir: str, embeddings_dir: str | None) -> None:
    """Writes ``_report.html``. The dataset is complete without it: whatever goes wrong here is only a warning."""
    try:
        from beam_curate import report

        print(f"report: {report.write(output_dir, embeddings_dir=embeddings_dir)}")
    except Exception as error:
        again = ["python", "-m", "beam_curate.report", output_dir]
        again += [f"--embeddings_dir={embeddings_dir}"] if embeddings_dir is not None else []
        reason = printable(str(error)) or type(error).__name__
        print(
            f"beam-curate: warning: the report could not be made ({reason}); to try again: {shlex.join(again)}",
            file=sys.stderr,
        )


def check_strict(document: dict[str, Any], output_dir: str) -> None:
    """Raises a ``CurateError`` if anything was rejected for another reason than its score; it names the first few."""
    kept_out_by_score = (BELOW_AESTHETIC_THRESHOLD, ABOVE_NSFW_THRESHOLD)
    images = sum(n for reason, n in document["images"]["rejected"].items() if reason not in kept_out_by_score)
    tars = document["tars"]["rejected"]
    if not images and not tars:
        return
    first: list[str] = []
    for part in document["rejects"]:
        table = parquet.open_table(files.join(output_dir, part["parquet"]))
        for row in table.read(columns=["source", "reason", "detail"]).to_pylist():
            if row["reason"] not in kept_out_by_score and len(first) < _FIRST_FAILURES:
                first.append(f"{row['source']}: {row['reason']}: {printable(row['detail'])}")
    raise CurateError(
        f"--strict: {images} images and {tars} tars could not be read; all are in "
        f"{files.join(output_dir, manifest.REJECTS_DIR)}, the first are\n  " + "\n  ".join(first)
    )


def printable(text: str) -> str:
    """Text from data, safe for a terminal: control characters cannot move the cursor or end a line."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def find_error(error: BaseException) -> tuple[str, str] | tuple[None, None]:
    """Class name and message of a ``CurateError``, also where a runner has wrapped it; Nones if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CurateError):
            return type(seen).__name__, _WHILE_RUNNING.sub("", str(seen))
        seen = seen.__cause__
    found = _CURATE_ERROR.findall(str(error))
    return found[-1] if found else (None, None)


def main(argv: Sequence[str] | None = None) -> int:
    """The way in of ``beam-curate``. Returns 0, 1 (the run failed) or 2 (wrong usage)."""
    argv = sys.argv[1:] if argv is None else argv
    with _hearing_interrupts() as interrupted:
        try:
            run(argv)
        except UsageError as error:
            print(f"beam-curate: {error}", file=sys.stderr)
            return 2
        except (Exception, KeyboardInterrupt) as error:
            if interrupted.is_set():
                stopped = "stopped; the same command continues from here"
                if options.runs_elsewhere(options.parse(argv)):
                    stopped = "stopped waiting; a job that was submitted goes on until it is cancelled where it runs"
                print(f"beam-curate: {stopped}", file=sys.stderr, flush=True)
                # Threads of workers may be in the middle of a batch, and Python would wait for them.
                os._exit(INTERRUPTED)
            _, message = find_error(error)
            if message is None or "--verbose" in argv:
                raise
            print(f"beam-curate: {message}", file=sys.stderr)
            return 1
    return 0


@contextlib.contextmanager
def _hearing_interrupts() -> Iterator[threading.Event]:
    """Notes that Ctrl-C was pressed: what it raises in the middle of a step, Beam reports as that step's error."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(signal_number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(signal_number, frame)

    def report(failed: threading.ExceptHookArgs) -> None:
        # Ctrl-C reaches a runner's own processes too, and threads here may lose them before it is noted.
        if not interrupted.wait(1.0):
            before_thread(failed)

    before, before_thread = signal.signal(signal.SIGINT, note), threading.excepthook
    threading.excepthook = report
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        threading.excepthook = before_thread


if __name__ == "__main__":
    sys.exit(main())

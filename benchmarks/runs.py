"""How the benchmarks run things: one process for each measurement, repetitions interleaved, medians in a table."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """A process: wall-clock seconds from its start to its end, CPU seconds, and its peak resident memory in bytes."""

    seconds: float
    cpu: float
    peak: int


def timed(command: Sequence[str]) -> Run:
    """Runs a command to its end.

    Raises:
      SystemExit: it failed; with what it said.
    """
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(HERE.parent)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{process.returncode}: {' '.join(command)}\n{said.read().decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def curate(source: Path, output: Path, *flags: str) -> Run:
    """One run of the whole program with the demo model, everything kept, without a report, into a fresh directory."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "beam_curate", f"--input={source}", f"--output_dir={output}", "--clip_model=demo"]
    quiet = ["--noreport", "--progress=none"]
    return timed([*command, "--aesthetic_threshold=-100", "--nsfw_threshold=100", *quiet, *flags])


def interleaved(repetitions: int, measures: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Every measure in turn, again and again, so that what disturbs the machine disturbs them all."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for repetition in range(repetitions):
        for name, measure in measures.items():
            runs[name].append(measure())
            print(
                f"# {repetition + 1}/{repetitions} {name}: {runs[name][-1].seconds:.1f} s", file=sys.stderr, flush=True
            )
    return runs


def seconds(runs: Iterable[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def peak(runs: Iterable[Run]) -> float:
    return statistics.median(run.peak for run in runs)


def cpu(runs: Iterable[Run]) -> float:
    return statistics.median(run.cpu for run in runs)


def rate(sizes: tuple[int, int], small: Iterable[Run], large: Iterable[Run]) -> tuple[float, float]:
    """Images a second without start-up, and the seconds of start-up, from runs on two sizes."""
    per_image = (seconds(large) - seconds(small)) / (sizes[1] - sizes[0])
    return 1 / per_image, seconds(small) - per_image * sizes[0]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def arguments(description: str, **more: tuple[object, str]) -> argparse.Namespace:
    """The flags of a benchmark: ``--photos``, ``--work``, ``--repetitions``, and what else it names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, default=HERE.parent.parent / "shared" / "photos", help="tars with photographs"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "beam-curate-benchmarks", help="scratch space"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="of every measurement")
    for name, (default, help_text) in more.items():
        kind = int if isinstance(default, (int, tuple)) else str
        parser.add_argument(
            f"--{name}", type=kind, nargs="+" if isinstance(default, tuple) else None, default=default, help=help_text
        )
    return parser.parse_args()

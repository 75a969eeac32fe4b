"""The names of all counters, each written down once, and the one way to count.

A count goes to Beam's metrics and, while a run shows its progress, to this process's tally: a file of numbers that the
submitting process may read at any time. Local runners tell their metrics only when they have finished.
"""

from __future__ import annotations

import functools
import mmap
import os
import threading
from pathlib import Path

from apache_beam.metrics.metric import MetricResults, Metrics
from apache_beam.metrics.metricbase import Counter

NAMESPACE = "beam_curate"

TARS_MATCHED = "tars_matched"
TARS_READ = "tars_read"
TARS_DONE = "tars_done"
TARS_REJECTED = "tars_rejected"
IMAGES_READ = "images_read"
IMAGES_EMBEDDED = "images_embedded"
IMAGES_FROM_STORE = "images_from_store"
IMAGES_FAILED = "images_failed"
IMAGES_FILTERED = "images_filtered"
IMAGES_WRITTEN = "images_written"
SHARDS_PLANNED = "shards_planned"
SHARDS_WRITTEN = "shards_written"
SHARDS_REUSED = "shards_reused"
SIDECARS_WRITTEN = "sidecars_written"
MODEL_LOADS = "model_loads"
_REJECTED_PREFIX = "images_rejected_"

# What a tally holds, in this order.
_TALLIED = (
    TARS_MATCHED,
    TARS_DONE,
    IMAGES_EMBEDDED,
    IMAGES_FROM_STORE,
    IMAGES_FAILED,
    IMAGES_FILTERED,
    SHARDS_PLANNED,
    SHARDS_WRITTEN,
)
_SLOTS = {name: slot for slot, name in enumerate(_TALLIED)}
# Names the directory of the tallies to worker processes, which inherit it.
TALLIES = "BEAM_CURATE_TALLIES"


def count(name: str, number: int = 1) -> None:
    """Adds to a counter."""
    _counter(name).inc(number)
    if name in _SLOTS and (directory := os.environ.get(TALLIES)):
        with _tally_lock:
            _tally(directory, os.getpid())[_SLOTS[name]] += number


def rejected(reason: str) -> str:
    """The name of the counter of images rejected for ``reason``."""
    return _REJECTED_PREFIX + reason


@functools.cache
def _counter(name: str) -> Counter:
    return Metrics.counter(NAMESPACE, name)


# Of this process: its threads make the tally and add to it one at a time.
_tally_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _tally(directory: str, process: int) -> memoryview:
    with open(Path(directory) / str(process), "w+b") as file:
        file.truncate(8 * len(_TALLIED))
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


def tallied(directory: str) -> dict[str, int]:
    """The tallies of all processes so far, added up."""
    sums = dict.fromkeys(_TALLIED, 0)
    for path in Path(directory).iterdir():
        for name, number in zip(_TALLIED, memoryview(path.read_bytes()).cast("q")):
            sums[name] += number
    return sums


def totals(results: MetricResults) -> dict[str, int]:
    """Every counter of this program, by name, summed over the steps that share it."""
    sums: dict[str, int] = {}
    for entry in results.query()["counters"]:
        name = entry.key.metric
        if name.namespace == NAMESPACE:
            sums[name.name] = sums.get(name.name, 0) + int(entry.result or 0)
    return sums

"""What a run says while it runs: a live line on a terminal, or a line every 30 seconds elsewhere."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping

from apache_beam.metrics.metric import MetricResults
from apache_beam.runners.runner import PipelineResult
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from beam_curate import metrics
from beam_curate.options import PROGRESS

AUTO, BAR, LOG, NONE = PROGRESS
_SECONDS = {BAR: 0.5, LOG: 30.0}
# Asking a remote engine for its metrics is a request.
_SECONDS_REMOTE = 5.0

_logger = logging.getLogger(__name__)


class Progress:
    """Shows the numbers of a run from a thread of its own, until it is stopped."""

    def __init__(self, mode: str, tallies: str):
        self._mode = mode
        self._tallies = tallies
        self._result: PipelineResult | None = None
        self._remote: Mapping[str, int] = {}
        self._asked = 0.0
        self._started = time.monotonic()
        self._done = threading.Event()
        self._bar = (
            tqdm(total=0, leave=False, dynamic_ncols=True, bar_format="{desc}{postfix}") if mode == BAR else None
        )
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._thread.start()

    def follow(self, result: PipelineResult) -> None:
        """Asks an engine too, whose workers may be elsewhere."""
        self._result = result

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        while not self._done.wait(_SECONDS[self._mode]):
            line = describe(self._numbers(), time.monotonic() - self._started)
            if self._bar is None:
                print(line, file=sys.stderr, flush=True)
            else:
                self._bar.set_description_str(line)

    def _numbers(self) -> Mapping[str, int]:
        local = metrics.tallied(self._tallies)
        if self._result is not None and time.monotonic() - self._asked > _SECONDS_REMOTE:
            try:
                self._remote = metrics.totals(_now(self._result))
            except Exception as error:  # whatever the engine's client raises: a line that is not shown stops no run
                _logger.debug("cannot ask for metrics: %s", error)
            self._asked = time.monotonic()
        return {name: max(number, self._remote.get(name, 0)) for name, number in local.items()}


def _now(result: PipelineResult) -> MetricResults:
    """An engine's metrics as they are now. Beam's portable results keep their first answer for good."""
    asked = copy.copy(result)
    if hasattr(asked, "_metrics"):
        asked._metrics = None
    return asked.metrics()


def describe(numbers: Mapping[str, int], seconds: float) -> str:
    """One line about a run that has taken so many seconds.

    Args:
      numbers: the counters that ``metrics.tallied`` gives.
    """
    matched, done = numbers[metrics.TARS_MATCHED], numbers[metrics.TARS_DONE]
    embedded, stored = numbers[metrics.IMAGES_EMBEDDED], numbers[metrics.IMAGES_FROM_STORE]
    failed, filtered = numbers[metrics.IMAGES_FAILED], numbers[metrics.IMAGES_FILTERED]
    planned, written = numbers[metrics.SHARDS_PLANNED], numbers[metrics.SHARDS_WRITTEN]
    kept, rejected = embedded + stored - filtered, failed + filtered
    images = f"{embedded} embedded, {stored} from the store, {kept} kept, {rejected} rejected"
    if planned:
        return f"{written} of {planned} shards written; {images}"
    if not matched:
        return "starting"
    if done == matched:
        return f"ranking; {images}"
    left = f", {_duration(seconds / done * (matched - done))} left" if done else ""
    # What matters most first: a narrow terminal shows only the beginning.
    return f"{done} of {matched} tars{left}, {(embedded + stored + failed) / seconds:.0f} images/s; {images}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextlib.contextmanager
def shown(mode: str) -> Iterator[Progress | None]:
    """Shows the progress of what runs inside.

    Args:
      mode: ``bar``, ``log``, ``none``; ``auto`` is ``bar`` where stderr is a terminal, else ``log``.
    """
    if mode == AUTO:
        mode = BAR if sys.stderr.isatty() else LOG
    if mode == NONE:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="beam-curate-") as tallies, logging_redirect_tqdm():
        os.environ[metrics.TALLIES] = tallies
        progress = Progress(mode, tallies)
        try:
            yield progress
        finally:
            progress.stop()
            del os.environ[metrics.TALLIES]

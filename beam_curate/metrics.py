"""The names of all Beam metrics, each written down once."""

from apache_beam.metrics.metric import MetricResults, Metrics
from apache_beam.metrics.metricbase import Counter

NAMESPACE = "beam_curate"

TARS_READ = "tars_read"
TARS_REJECTED = "tars_rejected"
IMAGES_READ = "images_read"
IMAGES_EMBEDDED = "images_embedded"
IMAGES_FROM_STORE = "images_from_store"
IMAGES_WRITTEN = "images_written"
SHARDS_WRITTEN = "shards_written"
SHARDS_REUSED = "shards_reused"
SIDECARS_WRITTEN = "sidecars_written"
MODEL_LOADS = "model_loads"
_REJECTED_PREFIX = "images_rejected_"


def counter(name: str) -> Counter:
    return Metrics.counter(NAMESPACE, name)


def rejected(reason: str) -> str:
    """The name of the counter of images rejected for ``reason``."""
    return _REJECTED_PREFIX + reason


def totals(results: MetricResults) -> dict[str, int]:
    """Every counter of this program, by name, summed over the steps that share it."""
    sums: dict[str, int] = {}
    for entry in results.query()["counters"]:
        name = entry.key.metric
        if name.namespace == NAMESPACE:
            sums[name.name] = sums.get(name.name, 0) + int(entry.result or 0)
    return sums

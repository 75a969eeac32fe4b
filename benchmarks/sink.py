"""The sink at scale: synthetic records from many sources through ranking, naming and planning; no bytes are copied.

With ``--one N`` it runs N records in this process, which is what is measured.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
from runs import Run, arguments, interleaved, peak, seconds, table, timed

from beam_curate.records import ImageRecord
from transforms.rank_globally import RankGlobally
from transforms.unique_image_ids import UniqueImageIds
from transforms.write_shards import content

PER_SOURCE = 1000
DIMENSIONS = 512
IMAGES_PER_TAR = 1000


def records(source: int) -> Iterator[ImageRecord]:
    """What one source tar of so many images leaves for the sink, in an order that is not the tar's."""
    rng = np.random.default_rng(source)
    embeddings = rng.standard_normal((PER_SOURCE, DIMENSIONS)).astype("<f2")
    for index in rng.permutation(PER_SOURCE).tolist():
        digest = hashlib.sha256(b"%d %d" % (source, index)).digest()
        key = f"{source:06d}{index:06d}"
        yield ImageRecord(
            f"gs://bucket/photos/{source:06d}.tar", index, key, key, f"{key}.jpg", index * 51200, 51200, digest, digest,
            512, 384, "jpeg", embeddings[index].tobytes(), 5.0, 0.1,
        )  # fmt: skip


def one(count: int) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        ranked, order = (
            pipeline
            | "Sources" >> beam.Create(range(count // PER_SOURCE), reshuffle=False)
            | "Records" >> beam.FlatMap(records)
            | "Rank" >> RankGlobally(content)
        )
        names = ranked | "UniqueImageIds" >> UniqueImageIds()
        shards = (
            {
                "records": ranked | "RecordsByShard" >> beam.Map(lambda pair: (pair[0] // IMAGES_PER_TAR, pair)),
                "names": names | "NamesByShard" >> beam.Map(lambda pair: (pair[0] // IMAGES_PER_TAR, pair)),
            }
            | "GroupByShard" >> beam.CoGroupByKey()
            | "Count" >> beam.MapTuple(lambda _, group: sum(1 for _ in group["records"]))
        )
        shards | "Total" >> beam.CombineGlobally(sum) | "Check" >> beam.Map(lambda total: check(total, count))
        order | "CheckOrder" >> beam.Map(lambda order: check(order.total, count))


def check(total: int, count: int) -> None:
    if total != count:
        raise ValueError(f"{total} records instead of {count}")


def main() -> None:
    chosen = arguments(
        __doc__,
        sizes=((250_000, 500_000, 1_000_000, 2_000_000), "records"),
        one=(0, "run so many here, and nothing else"),
    )
    if chosen.one:
        one(chosen.one)
        return

    def measure(size: int) -> Run:
        return timed([sys.executable, __file__, f"--one={size}"])

    runs = interleaved(chosen.repetitions, {str(size): (lambda size=size: measure(size)) for size in chosen.sizes})
    rows = []
    for size in chosen.sizes:
        took = runs[str(size)]
        rows.append(
            (
                size,
                size // PER_SOURCE,
                f"{seconds(took):.0f}",
                f"{1e6 * seconds(took) / size:.0f}",
                f"{peak(took) / 1e6:.0f}",
                f"{peak(took) / size / 1e3:.2f}",
            )
        )
    table(("records", "sources", "seconds", "µs a record", "peak memory, MB", "KB a record"), rows)


if __name__ == "__main__":
    main()

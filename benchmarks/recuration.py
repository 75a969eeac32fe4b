"""Curating again from the embedding store, against a plain copy of the same tars with webdataset."""

from __future__ import annotations

import shutil
import sys
from functools import partial

from crops import crops
from runs import HERE, Run, arguments, curate, interleaved, rate, table, timed

THREADS = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


def main() -> None:
    chosen = arguments(__doc__, sizes=((2500, 10000), "images of the two runs whose difference is the rate"))
    small, large = chosen.sizes
    sources = {size: crops(chosen.photos, chosen.work, size) for size in (small, large)}
    stores = {size: chosen.work / f"store-{size}" for size in (small, large)}
    for size, source in sources.items():
        if not stores[size].exists():
            curate(source, chosen.work / "output", f"--embeddings_dir={stores[size]}")
    output = chosen.work / "output"

    def copy(size: int) -> Run:
        shutil.rmtree(output, ignore_errors=True)
        return timed([sys.executable, str(HERE / "copy_tars.py"), str(sources[size]), str(output)])

    def again(size: int, *flags: str) -> Run:
        return curate(sources[size], output, f"--embeddings_dir={stores[size]}", *flags)

    ways = {
        "webdataset, read and written": copy,
        "re-curation": again,
        "re-curation, two threads": lambda size: again(size, *THREADS),
        "re-curation, two processes": lambda size: again(size, *PROCESSES),
    }
    measures = {f"{name} {size}": partial(way, size) for name, way in ways.items() for size in (small, large)}
    runs = interleaved(chosen.repetitions, measures)
    megabytes = sum(tar.stat().st_size for tar in sources[large].iterdir()) / large / 1e6
    rows, first = [], None
    for name in ways:
        speed, start = rate((small, large), runs[f"{name} {small}"], runs[f"{name} {large}"])
        first = first or speed
        rows.append((name, f"{speed:.0f}", f"{speed * megabytes:.0f}", speed / first, f"{start:.1f}"))
    table(("", "images/s", "MB/s", "of webdataset", "start-up, s"), rows)


if __name__ == "__main__":
    main()

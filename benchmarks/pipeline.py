"""The pipeline against a plain loop over the same functions: what Beam costs beside the model."""

from __future__ import annotations

import shutil
import sys
from functools import partial

from crops import crops
from runs import HERE, Run, arguments, cpu, curate, interleaved, peak, rate, table, timed

THREADS = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")


def main() -> None:
    chosen = arguments(__doc__, sizes=((2500, 10000), "images of the two runs whose difference is the rate"))
    small, large = chosen.sizes
    output = chosen.work / "output"
    sources = {size: crops(chosen.photos, chosen.work, size) for size in (small, large)}

    def loop(size: int) -> Run:
        shutil.rmtree(output, ignore_errors=True)
        return timed([sys.executable, str(HERE / "loop.py"), str(sources[size]), str(output)])

    def pipeline(size: int, *flags: str) -> Run:
        return curate(sources[size], output, *flags)

    ways = {
        "plain loop": loop,
        "pipeline, without a store": lambda size: pipeline(size, "--embeddings_dir=none"),
        "pipeline": pipeline,
        "pipeline, two threads": lambda size: pipeline(size, *THREADS),
    }
    measures = {f"{name} {size}": partial(way, size) for name, way in ways.items() for size in (small, large)}
    runs = interleaved(chosen.repetitions, measures)
    rows, first = [], None
    for name in ways:
        few, many = runs[f"{name} {small}"], runs[f"{name} {large}"]
        speed, start = rate((small, large), few, many)
        first = first or speed
        work = 1e3 * (cpu(many) - cpu(few)) / (large - small)
        rows.append((name, f"{speed:.0f}", speed / first, work, f"{start:.1f}", f"{peak(many) / 1e6:.0f}"))
    table(("", "images/s", "of the loop", "CPU ms an image", "start-up, s", "peak memory, MB"), rows)


if __name__ == "__main__":
    main()

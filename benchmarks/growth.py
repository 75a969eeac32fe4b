"""Does a larger dataset cost more for each image? Images a second and peak memory at three sizes."""

from __future__ import annotations

from functools import partial

from crops import crops
from runs import arguments, cpu, curate, interleaved, peak, seconds, table


def main() -> None:
    chosen = arguments(__doc__, sizes=((2500, 10000, 40000), "images"))
    sources = {size: crops(chosen.photos, chosen.work, size) for size in chosen.sizes}
    nothing = crops(chosen.photos, chosen.work, 250)
    output = chosen.work / "output"
    measures = {str(size): partial(curate, source, output) for size, source in {250: nothing, **sources}.items()}
    runs = interleaved(chosen.repetitions, measures)
    start = seconds(runs["250"])
    first = chosen.sizes[0]
    rows = []
    for size in chosen.sizes:
        many = runs[str(size)]
        growth = (peak(many) - peak(runs[str(first)])) / (size - first) / 1e3 if size != first else 0.0
        speed = (size - 250) / (seconds(many) - start)
        work = 1e3 * (cpu(many) - cpu(runs["250"])) / (size - 250)
        rows.append((size, f"{speed:.0f}", work, f"{peak(many) / 1e6:.0f}", growth))
    columns = (
        "images",
        "images/s, without the first 250",
        "CPU ms an image",
        "peak memory, MB",
        "KB for each further image",
    )
    table(columns, rows)


if __name__ == "__main__":
    main()

"""Where the seconds before the first image go: what importing costs, one package after the other, and an empty run."""

from __future__ import annotations

import sys
from functools import partial

from crops import crops
from runs import arguments, curate, interleaved, seconds, table, timed

IMPORTS = ("apache_beam", "torch", "torchvision", "open_clip", "nvidia.dali.fn", "beam_curate.pipeline")


def main() -> None:
    chosen = arguments(__doc__, images=(250, "images of the run"))
    source = crops(chosen.photos, chosen.work, chosen.images)
    steps = {"Python": "pass"}
    for i, name in enumerate(IMPORTS):
        steps[f"import {name}"] = "import " + ", ".join(IMPORTS[: i + 1])
    measures = {name: partial(timed, [sys.executable, "-c", code]) for name, code in steps.items()}
    run = f"a run on {chosen.images} images"
    runs = interleaved(chosen.repetitions, {**measures, run: partial(curate, source, chosen.work / "output")})
    rows, before = [], 0.0
    for name, took in runs.items():
        rows.append((name, seconds(took) - before, seconds(took)))
        before = seconds(took)
    table(("", "seconds more", "seconds in all"), rows)


if __name__ == "__main__":
    main()

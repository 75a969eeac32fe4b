"""The ten places where the pipeline spends most time for each image, by sampling its stacks with py-spy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from crops import crops
from runs import arguments, table

RATE = 200  # samples a second
IMAGES = 5000


def main() -> None:
    chosen = arguments(__doc__, images=(IMAGES, "images"), depth=(10, "places to list"))
    source = crops(chosen.photos, chosen.work, chosen.images)
    output, stacks = chosen.work / "output", chosen.work / "stacks.txt"
    shutil.rmtree(output, ignore_errors=True)
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or sys.exit(
        "py-spy is not installed: pip install '.[bench]'"
    )
    command = [sys.executable, "-m", "beam_curate", f"--input={source}", f"--output_dir={output}", "--clip_model=demo"]
    command += ["--aesthetic_threshold=-100", "--nsfw_threshold=100", "--noreport", "--progress=none"]
    spied = [spy, "record", "--format=raw", f"--rate={RATE}", "--output", str(stacks), "--", *command]
    subprocess.run(spied, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    own: Counter[str] = Counter()
    total = 0
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if frame]
        if not any("bundle_processor.py" in frame for frame in frames):
            continue  # start-up, and threads that wait
        own[re.sub(r":\d+\)$", ")", frames[-1])] += int(count)
        total += int(count)
    rows = [
        (place, 1e6 * count / RATE / chosen.images, f"{count / total:.0%}")
        for place, count in own.most_common(chosen.depth)
    ]
    table(("place", "µs an image", "of the work"), rows)


if __name__ == "__main__":
    main()

"""``python -m beam_curate.demo [DIRECTORY]``: a first look, without downloads or data.

Makes a few tars of made-up pictures, curates them with the tiny built-in model, and verifies the result. The model only
knows such pictures: it shows how a run looks, not what CLIP can do.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from beam_curate import synthetic, verify
from beam_curate.__main__ import main as curate

_TARS = 4
_SAMPLES_PER_TAR = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if the run and its verification succeed."""
    parser = argparse.ArgumentParser(prog="python -m beam_curate.demo", description="Curates made-up pictures.")
    parser.add_argument(
        "directory",
        nargs="?",
        default="demo",
        type=Path,
        help="where to work (default: ./demo); its input/ and output/ are replaced",
    )
    directory: Path = parser.parse_args(argv).directory
    source, output = directory / "input", directory / "output"
    for old in (source, output):
        shutil.rmtree(old, ignore_errors=True)
    synthetic.write_tars(source, _TARS, _SAMPLES_PER_TAR)
    arguments = [
        f"--input={source}",
        f"--output_dir={output}",
        "--clip_model=demo",
        "--aesthetic_threshold=5",
        "--nsfw_threshold=0.5",
        "--images_per_tar=50",
    ]
    print(f"{_TARS} tars of made-up pictures are in {source}; some are broken on purpose, and decoders will say so")
    print(f"$ python -m beam_curate {shlex.join(arguments)}", flush=True)
    code = curate(arguments)
    if code:
        return code
    print(f"$ python -m beam_curate.verify {shlex.quote(str(output))}", flush=True)
    code = verify.main([str(output)])
    print(f"open {output / '_report.html'} in a browser; then give --input and --output_dir of your own")
    return code


if __name__ == "__main__":
    sys.exit(main())

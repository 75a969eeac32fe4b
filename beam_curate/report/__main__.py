"""``python -m beam_curate.report OUTPUT_DIR``: writes the page that shows what became of the images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_curate import report
from beam_curate.errors import CurateError, UsageError
from beam_curate.options import check_beam_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if the page cannot be made or written, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m beam_curate.report",
        description="Writes one self-contained HTML page about a finished dataset. Takes Beam's flags for storage too.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", help="a directory on any Beam file system")
    parser.add_argument("--output", metavar="FILE", help="where the page goes (default: OUTPUT_DIR/_report.html)")
    parser.add_argument(
        "--embeddings_dir",
        metavar="DIR",
        help="the embedding store, as given to the run; none does without (default: OUTPUT_DIR/_embeddings)",
    )
    known, rest = parser.parse_known_args(argv)
    try:
        check_beam_flags(rest)
        FileSystems.set_options(PipelineOptions(rest))
        print(report.write(known.output_dir, known.output, known.embeddings_dir))
    except UsageError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except CurateError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

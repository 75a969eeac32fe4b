"""The report: one self-contained page about a finished dataset, the same bytes every time.

``python -m beam_curate.report OUTPUT_DIR`` makes it, and so does every run at its end.
"""

from __future__ import annotations

from beam_curate.errors import CurateError
from beam_curate.formats import files, manifest

MOST_BYTES = 5_000_000


def make(output_dir: str, embeddings_dir: str | None = None) -> bytes:
    """The page of a finished dataset, in UTF-8: at most ``MOST_BYTES``, whatever the size of the dataset.

    Args:
      output_dir: a directory on any Beam file system, as the page's command shall name it.
      embeddings_dir: of the embedding store, where it is not the dataset's own; ``none`` does without.

    Raises:
      CurateError: there is no finished dataset, or its files cannot be read.
    """
    output_dir = output_dir.rstrip("/") or output_dir
    # Seconds that a run without a report need not wait for.
    from beam_curate.report import facts, page, thumbnails

    found = facts.gather(output_dir, embeddings_dir)
    pictures = [
        picture for sheet in found.sheets for group in (sheet.spread, sheet.below, sheet.above) for picture in group
    ]
    max_pixels = found.document["config"].get("max_image_pixels", 100_000_000)
    small = thumbnails.load(output_dir, pictures, found.store, max_pixels)
    data = page.render(found, small, output_dir, embeddings_dir).encode("utf-8")
    if len(data) > MOST_BYTES:
        raise CurateError(f"{output_dir}: the report would have {len(data)} bytes, more than {MOST_BYTES}")
    return data


def write(output_dir: str, uri: str | None = None, embeddings_dir: str | None = None) -> str:
    """Makes the page and publishes it, unless that very page is there already. Returns where it is.

    Args:
      uri: where to; None for ``_report.html`` in the output directory.

    Raises:
      CurateError: as ``make``, or the storage refuses.
    """
    uri = uri or files.join(output_dir, manifest.REPORT_NAME)
    data = make(output_dir, embeddings_dir)
    if not (files.exists(uri) and files.read_bytes(uri) == data):
        with files.publish(uri, "text/html; charset=utf-8") as file:
            file.write(data)
        files.delete(files.unfinished(uri))
    return uri

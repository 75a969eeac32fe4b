"""A report as a test reads it: its markup by Python's own parser, and what it must say, from the Parquet files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from outputs import Dataset

# Each would run, load or break something if a page took it for markup.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    '"><svg onload="window.hacked = 4">',
    "' onmouseover='window.hacked = 5",
    "<!-- <script> {{ 7 * 7 }} {% raw %} ${window.hacked = 6} &lt;b&gt; &amp;",
    "עברית ← אבגד (1) <b>שלום</b>",
    "\u202e\u2066gnp.exe\u2069\u202c \u0000 \u2028 \u2029",
)


class Report(HTMLParser):
    """The elements of a page, and its text without style and scripts."""

    def __init__(self, data: bytes):
        super().__init__()
        self.bytes = data
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._raw: str | None = None
        self.feed(data.decode("utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._raw = tag if tag in ("script", "style") else self._raw
        if tag in ("td", "th", "dd", "dt"):
            self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._raw = None if tag == self._raw else self._raw

    def handle_data(self, data):
        if self._raw == "script":
            self.scripts[-1] += data
        elif self._raw is None:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    @property
    def command(self) -> str:
        (area,) = self.all("textarea")
        return area["data-command"]

    def kept(self, **stops: int) -> int:
        """How many images the page's own data says that a pair of stops keeps."""
        aesthetic, nsfw = stops.get("aesthetic"), stops.get("nsfw")
        return sum(
            count
            for a, n, count in self.data["cells"]
            if (aesthetic is None or a > aesthetic) and (nsfw is None or n <= nsfw)
        )

    def policy_allows_its_scripts(self) -> bool:
        (policy,) = (meta["content"] for meta in self.all("meta") if meta.get("http-equiv"))
        digests = [
            "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
            for text in self.scripts[1:]
        ]
        return re.search(r"script-src ([^;]*);", policy)[1].split() == digests


def read_report(directory: Path | str) -> Report:
    return Report((Path(directory) / "_report.html").read_bytes())


def scores(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Both scores of every image that reached the filters, float64, NaN where there is none."""
    rows = [*dataset.rows, *(row for row in dataset.rejects if row["stage"] == "filter")]
    return tuple(np.array([row[name] for row in rows], np.float64) for name in ("aesthetic_score", "nsfw_score"))


def kept(dataset: Dataset, aesthetic: float, nsfw: float) -> int:
    """How many images two thresholds keep."""
    a, n = scores(dataset)
    return int(np.count_nonzero((a >= aesthetic) & (n < nsfw)))

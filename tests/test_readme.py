"""What the README shows is true: its Python runs, its tables are those of the program."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from beam_curate import demo, metrics, records
from beam_curate.formats import manifest
from beam_curate.formats.parquet import REJECTS_SCHEMA, dataset_schema
from beam_curate.models.heads import PUBLIC_HEADS
from beam_curate.options import CurateOptions

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    assert demo.main([]) == 0
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    document = json.loads((tmp_path / "demo/output/_manifest.json").read_text())
    kept = document["images"]["written"]
    assert names["caption"] == "a sharp picture"
    assert len(names["images"]) == len(names["dataset"]) == names["data"].count_rows() == kept
    assert 0 < len(names["best"]) <= kept
    assert [decile for decile, *_ in names["by_decile"]] == list(range(1, 11))
    assert sum(images for _, images, *_ in names["by_decile"]) == names["pairs"].height == kept
    wide = json.loads(Path("demo/wide/_manifest.json").read_text())
    assert 0 < wide["images"]["written"] < document["images"]["read"]
    assert all(shard["images"] == 50 for shard in wide["shards"][:-1])


def table_after(heading: str) -> str:
    return README.split(heading, 1)[1].split("\n\n## ", 1)[0]


def test_every_flag_is_in_the_table_with_its_default():
    import argparse

    parser = argparse.ArgumentParser()
    CurateOptions._add_argparse_args(parser)
    rows = {
        flag: cells
        for line in table_after("### Flags").splitlines()
        if line.startswith("| `--")
        for cells in [line.split("|")]
        for flag in re.findall(r"--\w+", cells[1])
    }
    flags = {
        option: action for action in parser._actions for option in action.option_strings if option.startswith("--")
    }
    assert set(rows) == set(flags) - {"--help"}
    for flag, action in flags.items():
        if action.default not in (None, True, False, argparse.SUPPRESS):
            assert str(action.default) in rows[flag][2], flag


@pytest.mark.parametrize("name", [head.name for head in PUBLIC_HEADS])
def test_every_public_head_is_in_the_table(name):
    head = next(head for head in PUBLIC_HEADS if head.name == name)
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{name}`")]
    assert f"{head.clip_model}/{head.clip_pretrained}" in line
    assert str(head.embedding_size) in line


def test_every_sidecar_is_in_the_table_with_its_file():
    rows = {line.split("`")[1]: line for line in table_after("## Sidecars").splitlines() if line.startswith("| `")}
    assert tuple(rows) == manifest.SIDECARS
    for name, sidecar in manifest.OF_DATASET.items():
        assert rows[name].split("|")[2].strip() == f"`{sidecar.file}`"


def test_every_column_reason_and_metric_is_named():
    reasons = [value for name, value in vars(records).items() if name.isupper() and isinstance(value, str)]
    counters = [
        value
        for name, value in vars(metrics).items()
        if name.isupper() and not name.startswith("_") and name not in ("NAMESPACE", "TALLIES")
    ]
    for name in (*dataset_schema(4, {}).names, *REJECTS_SCHEMA.names, *reasons, *counters):
        assert f"`{name}`" in README, name
    assert f"`{metrics.rejected('{reason}')}`" in README
    assert os.path.exists("LICENSE")

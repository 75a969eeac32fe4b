"""verify: says nothing of a good dataset, and one line for each fault of another."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from tars import write_dataset, write_tar

from beam_curate import verify
from beam_curate.formats import files


@pytest.fixture
def dataset(tmp_path, curate):
    write_tar(tmp_path / "in" / "9.tar", [("a.txt", b"no image")])
    return curate(write_dataset(tmp_path / "in", tars=2, samples=3), "--images_per_tar=4")


def faults(dataset) -> list[str]:
    return list(verify.faults(str(dataset.directory)))


def relist(dataset, path) -> None:
    """Makes the manifest agree with a file that was changed."""
    size, sha256 = files.measure(str(path))
    document = dataset.manifest
    for shard in document["shards"]:
        for kind in ("tar", "parquet"):
            if shard[kind] == path.name:
                shard[f"{kind}_bytes"], shard[f"{kind}_sha256"] = size, sha256
    (dataset.directory / "_manifest.json").write_text(json.dumps(document))


def test_a_good_dataset_has_no_faults(dataset, capsys):
    assert faults(dataset) == []
    assert verify.main([str(dataset.directory)]) == 0
    assert "every file is as the manifest says" in capsys.readouterr().out


def test_a_missing_manifest_means_unfinished(dataset, capsys):
    (dataset.directory / "_manifest.json").unlink()
    assert verify.main([str(dataset.directory)]) == 1
    assert capsys.readouterr().out.endswith("is missing: the dataset is not finished\n")


def test_missing_stray_and_changed_files_are_named(dataset):
    first, second = dataset.tars
    first.unlink()
    data = bytearray(second.read_bytes())
    data[600] ^= 1
    second.write_bytes(data)
    (dataset.directory / "notes.txt").write_text("stray")
    parquet = second.with_suffix(".parquet")
    parquet.write_bytes(parquet.read_bytes()[:-1])
    found = faults(dataset)
    assert found[0] == "notes.txt is not in the manifest"
    assert f"{first.name} is missing" in found
    assert any(fault.startswith(f"{second.name} has SHA-256") for fault in found)
    assert any(fault.startswith(f"{parquet.name} has {parquet.stat().st_size} bytes, not") for fault in found)


def test_a_row_that_disagrees_with_its_image_is_named(dataset):
    path = dataset.tars[0].with_suffix(".parquet")
    table = pq.read_table(path)
    hashes = table["sha256"].to_pylist()
    column = table.schema.get_field_index("sha256")
    pq.write_table(table.set_column(column, "sha256", [[hashes[1], *hashes[1:]]]), path)
    relist(dataset, path)
    (fault,) = faults(dataset)
    assert fault.startswith(f"{dataset.tars[0].name}: 00000000.jpg has SHA-256 {hashes[0]}, its row says {hashes[1]}")


def test_counts_that_do_not_add_up_are_named(dataset):
    document = dataset.manifest
    document["images"]["rejected"] = {"no_image": 2}
    (dataset.directory / "_manifest.json").write_text(json.dumps(document))
    assert any("do not add up" in fault for fault in faults(dataset))
    assert any(fault.startswith("_rejects counts {'no_image': 1}") for fault in faults(dataset))

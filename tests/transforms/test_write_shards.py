"""The sink: exact shards, one order, source bytes, and a manifest that comes last."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from outputs import tree
from tars import image_bytes, read_members, sample_members, write_dataset, write_tar

from beam_curate import verify
from beam_curate.formats.manifest import Provenance
from beam_curate.models.clip import ClipModelHandler
from beam_curate.records import ImageRecord
from transforms import EmbedImages, MatchTarShards, ReadTarShards, WriteShards
from transforms.match_tar_shards import match_tars
from transforms.read_tar_shards import read_entries
from transforms.write_shards import Plan, Settings, find_shard, write_shard


@pytest.fixture
def write(tmp_path, local_pipeline):
    """Reads, embeds and writes; gives back the directory and the sink's results as lists."""

    def run(source: str, name: str = "out", keep=lambda record: True, **options) -> str:
        output = str(tmp_path / name)
        with local_pipeline() as pipeline:
            records = (
                pipeline
                | MatchTarShards(source)
                | ReadTarShards()
                | EmbedImages(ClipModelHandler("demo", batch_size=8))
            )
            records | beam.Filter(keep) | WriteShards(output, **options)
        return output

    return run


def manifest(output: str) -> dict:
    with open(f"{output}/_manifest.json") as file:
        return json.load(file)


def test_every_shard_but_the_last_is_exactly_full_and_in_order(tmp_path, write):
    source = write_dataset(tmp_path / "in", tars=3, samples=7)
    output = write(source, images_per_tar=4)
    document = manifest(output)
    assert [shard["images"] for shard in document["shards"]] == [4, 4, 4, 4, 4, 1]
    names = [f"images-{document['hash']}-{i:06d}" for i in range(6)]
    assert [shard["tar"] for shard in document["shards"]] == [f"{name}.tar" for name in names]
    assert [shard["parquet"] for shard in document["shards"]] == [f"{name}.parquet" for name in names]
    written = [member for shard in document["shards"] for member in read_members(f"{output}/{shard['tar']}")]
    sources = [member for i in range(3) for member in read_members(tmp_path / "in" / f"{i:05d}.tar")]
    assert written == sources
    for shard in document["shards"]:
        for kind in ("tar", "parquet"):
            data = open(f"{output}/{shard[kind]}", "rb").read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard[f"{kind}_bytes"], shard[f"{kind}_sha256"])
    assert document["images"] == {"read": 21, "written": 21, "rejected": {}}
    assert verify.main([output]) == 0


def test_a_second_run_writes_the_same_bytes_and_a_third_into_the_same_place_nothing(tmp_path, write):
    source = write_dataset(tmp_path / "in", tars=2, samples=5)
    first, second = write(source, "first", images_per_tar=3), write(source, "second", images_per_tar=3)
    assert tree(first) == tree(second)
    times = {name: os.stat(f"{first}/{name}").st_mtime_ns for name in tree(first)}
    write(source, "first", images_per_tar=3)
    assert {name: os.stat(f"{first}/{name}").st_mtime_ns for name in tree(first)} == times


def test_another_dataset_is_refused_unless_told_to_overwrite(tmp_path, write):
    source = write_dataset(tmp_path / "in", tars=1, samples=5)
    output = write(source, images_per_tar=3)
    before = tree(output)
    with pytest.raises(
        Exception, match="holds another finished dataset; choose another --output_dir or give --overwrite"
    ):
        write(source, images_per_tar=2)
    assert tree(output) == before
    write(source, images_per_tar=2, overwrite=True)
    assert [shard["images"] for shard in manifest(output)["shards"]] == [2, 2, 1]
    assert len(tree(output)) == 7
    assert verify.main([output]) == 0


def test_names_follow_the_content(tmp_path, write):
    source = write_dataset(tmp_path / "in", tars=1, samples=4)
    base = manifest(write(source, "a", images_per_tar=4))["hash"]
    assert manifest(write(source, "b", images_per_tar=3))["hash"] != base
    assert manifest(write(source, "c", images_per_tar=4, member_names="sequential"))["hash"] != base
    assert manifest(write(source, "d", images_per_tar=4, keep=lambda record: record.index))["hash"] != base
    random = write(source, "e", images_per_tar=4, deterministic_name=False)
    assert manifest(random)["hash"] == base
    assert base not in manifest(random)["shards"][0]["tar"]
    assert verify.main([random]) == 0


def test_members_can_be_named_by_rank(tmp_path, write):
    source = write_dataset(tmp_path / "in", tars=2, samples=2)
    output = write(source, images_per_tar=3, member_names="sequential")
    names = [name for shard in manifest(output)["shards"] for name, _ in read_members(f"{output}/{shard['tar']}")]
    assert names == [f"{rank:09d}.{extension}" for rank in range(4) for extension in ("jpg", "json", "txt")]


def test_a_contested_key_stays_with_the_first_and_the_others_get_a_suffix(tmp_path, write):
    for name in ("a", "b"):
        write_tar(
            tmp_path / "in" / f"{name}.tar",
            sample_members("dir/same", seed=len(name)) + sample_members(f"own{name}", 2),
        )
    output = write(str(tmp_path / "in"), images_per_tar=2)
    names = [name for shard in manifest(output)["shards"] for name, _ in read_members(f"{output}/{shard['tar']}")]
    suffix = hashlib.sha256(f"{tmp_path}/in/b.tar\n0".encode()).hexdigest()[:8]
    assert names[0] == "dir/same.jpg"
    assert names[6:9] == [f"dir/same-{suffix}.{extension}" for extension in ("jpg", "json", "txt")]
    assert verify.main([output]) == 0


def test_dangerous_names_stay_inside(tmp_path, write):
    members = [
        (f"{key}.jpg", image_bytes(i))
        for i, key in enumerate(("../../up", "/abs/olute", "..", "a/../b", "n" * 300, "new\nline"))
    ]
    output = write(write_tar(tmp_path / "in.tar", members))
    with tarfile.open(f"{output}/{manifest(output)['shards'][0]['tar']}") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "extracted", filter="data")
    assert len(names) == 5 and all(not name.startswith("/") and ".." not in name.split("/") for name in names)
    assert [data for _, data in read_members(f"{output}/{manifest(output)['shards'][0]['tar']}")] == [
        data for name, data in members if not name.startswith("...")
    ]


def test_gzip_sources_are_copied_too(tmp_path, write):
    members = sample_members("a") + sample_members("b", 1) + sample_members("c", 2)
    source = write_tar(tmp_path / "in" / "x.tar.gz", members, mode="w:gz")
    output = write(source, images_per_tar=2, keep=lambda record: record.key != "b")
    assert read_members(f"{output}/{manifest(output)['shards'][0]['tar']}") == members[:3] + members[6:]


def test_nothing_kept_is_a_valid_empty_dataset(tmp_path, write):
    output = write(write_dataset(tmp_path / "in", tars=1, samples=2), keep=lambda record: False)
    assert manifest(output)["shards"] == []
    assert list(tree(output)) == ["_manifest.json"]
    assert verify.main([output]) == 0


def test_sources_without_a_record_leave_no_gap(tmp_path, write):
    write_tar(tmp_path / "in" / "0.tar", [])
    write_tar(tmp_path / "in" / "1.tar", sample_members("a"))
    write_tar(tmp_path / "in" / "2.tar", sample_members("dropped"))
    write_tar(tmp_path / "in" / "3.tar", [("no image.txt", b"text")])
    write_tar(tmp_path / "in" / "4.tar", sample_members("b", 1) + sample_members("c", 2))
    output = write(str(tmp_path / "in"), images_per_tar=2, keep=lambda record: record.key != "dropped")
    written = [[name for name, _ in read_members(f"{output}/{shard['tar']}")] for shard in manifest(output)["shards"]]
    assert written == [["a.jpg", "a.json", "a.txt", "b.jpg", "b.json", "b.txt"], ["c.jpg", "c.json", "c.txt"]]


def test_a_source_that_changes_before_it_is_copied_fails_the_run(tmp_path, write):
    path = write_tar(tmp_path / "in" / "x.tar", sample_members("a") + sample_members("b", 1, caption="before"))

    def change(record):
        with open(path, "r+b") as file:
            data = file.read().replace(b"before", b"after!")
            file.seek(0)
            file.write(data)
        return True

    with pytest.raises(Exception, match=r"x\.tar has changed since it was read, at sample 'b'"):
        write(path, keep=change)
    assert not os.path.exists(tmp_path / "out" / "_manifest.json")


def test_a_source_that_disappears_before_it_is_copied_fails_the_run(tmp_path, write):
    path = write_tar(tmp_path / "in" / "x.tar", sample_members("a"))

    def remove(record):
        os.remove(path)
        return True

    with pytest.raises(Exception, match=r"x\.tar has changed since it was read"):
        write(path, keep=remove)
    assert tree(tmp_path / "out") == {}


def test_the_result_gives_shards_and_records_with_or_without_image_data(tmp_path, local_pipeline):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    for remove in (False, True):
        with local_pipeline() as pipeline:
            records = (
                pipeline
                | MatchTarShards(source)
                | ReadTarShards()
                | EmbedImages(ClipModelHandler("demo", batch_size=8))
            )
            result = records | WriteShards(str(tmp_path / f"out{remove}"), 2, remove_image_data=remove)
            assert_that(
                result.shards | "Images" >> beam.Map(lambda shard: (shard.index, shard.images)),
                equal_to([(0, 2), (1, 1)]),
            )
            facts = result.records | "Facts" >> beam.Map(
                lambda record: (record.image_id, record.member_name, record.image)
            )
            expected = [(f"000{i:05d}", f"000{i:05d}.jpg", None if remove else image_bytes(i)) for i in range(3)]
            assert_that(facts, equal_to(expected), "CheckRecords")


@pytest.mark.parametrize("options", [{"images_per_tar": 0}, {"member_names": "random"}, {"sidecars": ["idx"]}])
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ValueError, match=r"images_per_tar|member_names|'idx' is not one of wids, sizes, dali, card"):
        WriteShards("out", **options)


def records_of(source: str) -> list[ImageRecord]:
    handler = ClipModelHandler("demo", batch_size=8)
    model = handler.load_model()
    entries = [entry for tar in match_tars([source]) for entry in read_entries(tar)]
    embedded = [
        result
        for start in range(0, len(entries), 8)
        for result in handler.run_inference(entries[start : start + 8], model)
    ]
    return [entry for entry in embedded if isinstance(entry, ImageRecord)]


def test_the_order_in_which_records_come_does_not_show(tmp_path, local_pipeline):
    records = records_of(write_dataset(tmp_path / "in", tars=4, samples=5))
    trees = []
    for seed in range(3):
        random.Random(seed).shuffle(records)
        with local_pipeline() as pipeline:
            pipeline | beam.Create(records) | beam.Reshuffle() | WriteShards(str(tmp_path / str(seed)), 3)
        trees.append(tree(tmp_path / str(seed)))
    assert trees[0] == trees[1] == trees[2]


def test_a_writer_called_twice_or_at_the_same_time_for_one_shard_leaves_one(tmp_path):
    records = records_of(write_dataset(tmp_path / "in", tars=2, samples=8))
    settings = Settings(str(tmp_path / "out"), 16, True, False, "id", True, False, None, Provenance())
    plan = Plan("0123456789ab", "0123456789ab", len(records), False)
    ranked = list(enumerate(records))
    first = write_shard(settings, plan, 0, ranked)
    before = tree(tmp_path / "out")
    assert len(before) == 2
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: write_shard(settings, plan, 0, ranked), range(8)))
    assert all(result == first for result in again)
    assert find_shard(settings, plan, 0, ranked) == first
    assert tree(tmp_path / "out") == before

"""Sidecars: each read by the loader that it is for, made again by verify, and no part of a dataset's identity."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import apache_beam as beam
import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import Dataset, tree
from tars import image_bytes, read_members, sample_members, write_dataset, write_tar

from beam_curate import verify
from beam_curate.__main__ import main
from beam_curate.errors import CurateError
from beam_curate.formats import files, manifest, sidecars
from beam_curate.formats.parquet import dataset_schema
from beam_curate.records import ImageRecord
from transforms import WriteShards

COUNT = 10
ALL = "--sidecars=wids,sizes,dali,card"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two tars of five samples as shards of four, four and two images, with every sidecar."""
    root = tmp_path_factory.mktemp("sidecars")
    source = write_dataset(root / "in", tars=2, samples=5)
    flags = ["--clip_model=demo", "--aesthetic_threshold=-100", "--nsfw_threshold=100", "--inference_batch_size=8"]
    flags.append("--noreport")
    assert main([f"--input={source}", f"--output_dir={root}/out", "--images_per_tar=4", *flags, ALL]) == 0
    return Dataset(root / "out")


def keys() -> list[str]:
    return [f"{tar:03d}{index:05d}" for tar in range(2) for index in range(5)]


def test_the_manifest_lists_them_and_nothing_else_of_it_changes(output, curate):
    listed = {sidecar["file"]: (sidecar["bytes"], sidecar["sha256"]) for sidecar in output.manifest["sidecars"]}
    stems = [tar.stem for tar in output.tars]
    assert list(listed) == ["README.md", *(f"{stem}.idx" for stem in stems), "shardindex.json", "sizes.json"]
    for name, facts in listed.items():
        data = (output.directory / name).read_bytes()
        assert facts == (len(data), hashlib.sha256(data).hexdigest())
    plain = curate(str(output.directory.parent / "in" / "*.tar"), "--images_per_tar=4")
    assert "sidecars" not in plain.manifest
    assert plain.manifest == {name: value for name, value in output.manifest.items() if name != "sidecars"}
    assert set(tree(output.directory)) - set(tree(plain.directory)) == set(listed)


def test_wids_own_loader(output, tmp_path, monkeypatch):
    import wids

    monkeypatch.setenv("WIDS_CACHE", str(tmp_path))
    index = wids.ShardListDataset(str(output.directory / "shardindex.json"), transformations=[])
    assert len(index) == COUNT
    for i in (9, *range(COUNT)):
        sample = index[i]
        assert sample["__key__"] == keys()[i]
        assert sample["__shard__"] == str(output.tars[i // 4])
        assert sample[".jpg"].read() == image_bytes(i)
        assert sample[".txt"].read().decode() == f"picture {i}"
    assert json.loads((output.directory / "shardindex.json").read_text()) == {
        "__kind__": "wids-shard-index-v1",
        "name": f"images-{output.manifest['hash']}",
        "wids_version": 1,
        "shardlist": [
            {"url": tar.name, "nsamples": n, "filesize": tar.stat().st_size}
            for tar, n in zip(output.tars, (4, 4, 2), strict=True)
        ],
    }


def test_open_clips_own_loader_knows_the_size(output):
    import open_clip
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    pattern = f"{output.directory}/images-{output.manifest['hash']}-{{000000..000002}}.tar"
    assert get_dataset_size(pattern) == (COUNT, 3)
    assert get_dataset_size(pattern.replace("000002}", "000001}")) == (8, 2)
    args = argparse.Namespace(
        train_data=pattern,
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=5,
        workers=1,
        world_size=1,
        seed=0,
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    data = get_wds_dataset(args, open_clip.image_transform(96, is_train=True), is_train=True, tokenizer=tokenizer)
    assert (data.dataloader.num_samples, data.dataloader.num_batches) == (COUNT, 2)


def test_dali_reads_by_index(output):
    assert dali_read(output.tars, ["jpg", "txt"], COUNT) == [
        (image_bytes(seed), f"picture {seed}".encode()) for seed in range(COUNT)
    ]


def dali_read(tars: list[Path], extensions: list[str], count: int) -> list[tuple[bytes, ...]]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def read():
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=extensions,
                missing_component_behavior="empty",
            )
        )

    pipe = read()
    pipe.build()
    found: list[tuple[bytes, ...]] = []
    while len(found) < count:
        batch = pipe.run()
        found += [tuple(bytes(part.at(i)) for part in batch) for i in range(len(batch[0]))]
    return found[:count]


def test_the_dali_index_has_the_bytes_of_dalis_own_tool(output, tmp_path):
    import wds2idx

    for tar in output.tars:
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "own.idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "own.idx").read_bytes()


def test_dali_reads_names_that_its_own_tool_cannot_index(tmp_path, curate):
    odd = [("a dir/k é 1.jpg", image_bytes(1)), ("a dir/k é 1.", b"no extension"), ("a dir/k é 1.x y", b"with a space")]
    source = write_tar(
        tmp_path / "in.tar", [*sample_members("0 first"), *odd, ("long/" * 25 + "z.jpg", image_bytes(2))]
    )
    output = curate(source, "--sidecars=dali")
    (tar,) = output.tars
    assert ("a dir/k é 1.x y", b"with a space") in read_members(tar)
    assert dali_read([tar], ["jpg", "txt"], 3) == [
        (image_bytes(0), b"picture 0"),
        (image_bytes(1), b""),
        (image_bytes(2), b""),
    ]
    assert verify.main([str(output.directory)]) == 0


def test_the_card_is_read_by_hugging_face_hub(output):
    card = huggingface_hub.DatasetCard.load(output.directory / "README.md")
    data = card.data.to_dict()
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "images-*.parquet"}]}
    ]
    size = sum(tar.with_suffix(".parquet").stat().st_size for tar in output.tars)
    assert data["dataset_info"]["splits"] == [{"name": "train", "num_bytes": size, "num_examples": COUNT}]
    assert "license" not in data
    document = output.manifest
    for fact in (
        f"{COUNT} images in 3 shards",
        f"| read | {COUNT} |",
        f"- encoder, weights_sha256: `{document['models']['encoder']['weights_sha256']}`",
        f"- aesthetic head: `demo`, SHA-256 `{document['models']['aesthetic_head']['sha256']}`",
        "- aesthetic threshold: `-100.0` (kept: score >= threshold)",
        "- nsfw threshold: `100.0` (kept: score < threshold)",
        "## Licence\n\nNot stated.",
    ):
        assert fact in card.text


def test_datasets_loads_the_directory_as_one_split_with_the_cards_features(output, tmp_path):
    loaded = datasets.load_dataset(str(output.directory), cache_dir=str(tmp_path))
    assert list(loaded) == ["train"]
    table = loaded["train"]
    assert list(table["image_id"]) == keys()
    assert list(table["caption"]) == [f"picture {seed}" for seed in range(COUNT)]
    assert list(table["aesthetic_score"]) == [row["aesthetic_score"] for row in output.rows]
    assert np.array_equal(np.asarray(table["embedding"]), np.asarray([row["embedding"] for row in output.rows]))
    info = datasets.info.DatasetInfosDict.from_directory(str(output.directory))["default"]
    schema = pq.read_schema(output.tars[0].with_suffix(".parquet"))
    assert info.features == table.features == datasets.Features.from_arrow_schema(schema)
    assert info.splits["train"].num_examples == COUNT


def test_text_from_data_cannot_break_the_card(output):
    document = json.loads((output.directory / "_manifest.json").read_text())
    hostile = "a`b``c\n---\nlicense: mit\n\u2028# heading <b>|"
    document["input"] = [hostile]
    document["models"]["encoder"]["clip_model"] = hostile
    document["models"]["nsfw_head"]["name"] = hostile
    before = huggingface_hub.DatasetCard.load(output.directory / "README.md")
    schema = dataset_schema(64, {})
    card = huggingface_hub.DatasetCard(sidecars.card(document, schema).decode())
    assert card.data.to_dict() == before.data.to_dict()
    assert len(card.text.splitlines()) == len(before.text.splitlines())
    clean = hostile.replace("\n", "\ufffd").replace("\u2028", "\ufffd")
    assert f"- source: ``` {clean} ```\n" in card.text


@pytest.mark.parametrize(
    ("images", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")]
)
def test_the_cards_class_of_size(output, images, category):
    document = output.manifest
    document["images"]["written"] = images
    card = huggingface_hub.DatasetCard(sidecars.card(document, dataset_schema(None, {})).decode())
    assert card.data.size_categories == [category]


def test_a_dataset_without_images_has_them_too(tmp_path, curate, capsys):
    output = curate(write_tar(tmp_path / "in.tar", [("a.jpg", b"broken")]), ALL)
    assert output.manifest["shards"] == []
    assert [sidecar["file"] for sidecar in output.manifest["sidecars"]] == [
        "README.md",
        "shardindex.json",
        "sizes.json",
    ]
    assert json.loads((output.directory / "sizes.json").read_text()) == {}
    assert json.loads((output.directory / "shardindex.json").read_text())["shardlist"] == []
    card = huggingface_hub.DatasetCard.load(output.directory / "README.md")
    assert card.data.to_dict()["dataset_info"]["splits"][0]["num_examples"] == 0
    assert "| undecodable | 1 |" in card.text
    assert verify.main([str(output.directory)]) == 0
    # Files that a run killed before its manifest has left are known again, `{}` included.
    before = tree(output.directory)
    (output.directory / "_manifest.json").unlink()
    assert tree(curate(str(tmp_path / "in.tar"), ALL).directory) == before


def test_the_sink_alone_writes_them(tmp_path, local_pipeline):
    from beam_curate.models.clip import ClipModelHandler
    from transforms import EmbedImages, MatchTarShards, ReadTarShards

    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    with local_pipeline() as pipeline:
        records = pipeline | MatchTarShards(source) | ReadTarShards() | EmbedImages(ClipModelHandler("demo"))
        records | WriteShards(str(tmp_path / "out"), images_per_tar=2, sidecars=["card", "dali"])
    output = Dataset(tmp_path / "out")
    expected = [(image_bytes(seed), f"picture {seed}".encode()) for seed in range(3)]
    assert dali_read(output.tars, ["jpg", "txt"], 3) == expected
    loaded = datasets.load_dataset(str(output.directory), cache_dir=str(tmp_path / "cache"))
    assert list(loaded["train"]["image_id"]) == keys()[:3]
    assert verify.main([str(output.directory)]) == 0


def test_other_sidecars_of_a_finished_dataset_are_those_of_a_fresh_run_and_its_shards_stay(tmp_path, curate, capsys):
    source = write_dataset(tmp_path / "in", tars=1, samples=5)
    flags = ("--images_per_tar=2",)
    fresh = {
        asked: tree(curate(source, *flags, f"--sidecars={asked}", output=tmp_path / asked).directory)
        for asked in ("none", "wids,dali", "dali,sizes,card")
    }
    output = curate(source, *flags)
    shards = {path: path.stat().st_mtime_ns for path in output.directory.glob("images-*.*")}
    for asked, said in (("wids,dali", "wrote 4 "), ("dali,sizes,card", "wrote 2 "), ("none", "nothing")):
        curate(source, *flags, f"--sidecars={asked}")
        assert f"this dataset was there already; {said}" in capsys.readouterr().out
        assert tree(output.directory) == fresh[asked], asked
        assert {path: path.stat().st_mtime_ns for path in shards} == shards
        assert verify.main([str(output.directory)]) == 0


def test_asking_for_the_same_again_writes_nothing(tmp_path, curate, capsys):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    output = curate(source, ALL)
    times = {path: path.stat().st_mtime_ns for path in output.directory.rglob("*") if path.is_file()}
    curate(source, "--sidecars=card,dali,dali,sizes,wids")
    assert "nothing was written" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.directory.rglob("*") if path.is_file()} == times


def test_a_killed_run_takes_over_shards_and_makes_their_sidecars(tmp_path, curate):
    source = write_dataset(tmp_path / "in", tars=1, samples=5)
    output = curate(source, "--images_per_tar=2", ALL)
    before = tree(output.directory)
    kept = [path for path in output.directory.glob("images-*") if path.suffix in (".tar", ".parquet")]
    facts = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in kept]
    first, second, _ = (tar.with_suffix(".idx") for tar in output.tars)
    (output.directory / "_manifest.json").unlink()
    (output.directory / "sizes.json").unlink()
    first.unlink()
    second.write_text("v1.2 1\n")
    curate(source, "--images_per_tar=2", ALL)
    assert tree(output.directory) == before
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in kept] == facts


def test_overwriting_replaces_them(tmp_path, curate):
    source = write_dataset(tmp_path / "in", tars=1, samples=5)
    curate(source, "--images_per_tar=2", ALL)
    assert main([f"--input={source}", f"--output_dir={tmp_path}/output", "--clip_model=demo", ALL]) == 1
    output = curate(source, "--images_per_tar=3", "--overwrite", ALL)
    assert tree(output.directory) == tree(curate(source, "--images_per_tar=3", ALL, output=tmp_path / "new").directory)
    output = curate(source, "--images_per_tar=4", "--overwrite")
    assert not [name for name in tree(output.directory) if name.endswith((".idx", ".md", "sizes.json", "index.json"))]


def test_while_sidecars_are_replaced_the_directory_is_unfinished(tmp_path, curate, monkeypatch):
    source = write_dataset(tmp_path / "in", tars=1, samples=3)
    output, other = (curate(source, f"--images_per_tar={n}", ALL, output=tmp_path / str(n)) for n in (2, 3))
    of_dataset = {
        name: (other.directory / name).read_bytes() for name in ("README.md", "shardindex.json", "sizes.json")
    }
    publish = files.publish

    def failing(uri):
        if uri.endswith("sizes.json"):
            raise CurateError("the disk is full")
        return publish(uri)

    monkeypatch.setattr(files, "publish", failing)
    with pytest.raises(CurateError, match="the disk is full"):
        manifest.finish(str(output.directory), other.manifest, True, of_dataset)
    assert list(verify.faults(str(output.directory))) == [
        f"{output.directory}/_manifest.json is missing: the dataset is not finished"
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("README.md", "# Mine\n"), ("sizes.json", '{"a.tar": 1}'), ("shardindex.json", "{}\n")]
)
def test_files_of_others_with_such_names_are_refused_and_stay(tmp_path, curate, capsys, name, text):
    source = write_dataset(tmp_path / "in", tars=1, samples=2)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / name).write_text(text)
    curate(source, ALL, code=2)
    assert f"holds files that are not a dataset's ({name})" in capsys.readouterr().err
    assert (tmp_path / "output" / name).read_text() == text
    manifest.clear(str(tmp_path / "output"))
    assert (tmp_path / "output" / name).read_text() == text


def test_the_sink_alone_replaces_no_file_of_others(tmp_path, local_pipeline):
    mine = tmp_path / "out" / "README.md"
    mine.parent.mkdir()
    mine.write_text("# Mine\n")
    with (
        pytest.raises(Exception, match=r"README\.md is not from this program; move it away"),
        local_pipeline() as pipeline,
    ):
        pipeline | beam.Create([]).with_output_types(ImageRecord) | WriteShards(str(mine.parent), sidecars=["card"])
    assert tree(mine.parent) == {"README.md": hashlib.sha256(b"# Mine\n").hexdigest()}


@pytest.mark.parametrize("asked", ["idx", "wids,idx", "", "wids,none", "WIDS"])
def test_an_unknown_name_is_wrong_usage(tmp_path, capsys, asked):
    assert main([f"--input={tmp_path}/*.tar", f"--output_dir={tmp_path}/out", f"--sidecars={asked}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("beam-curate: --sidecars: '")
    assert said.err.endswith("is not one of wids, sizes, dali, card\n")
    assert said.err.count("\n") == 1
    with pytest.raises(ValueError, match="is not one of wids, sizes, dali, card"):
        WriteShards("out", sidecars=asked.split(","))


@pytest.fixture
def small(tmp_path, curate) -> Dataset:
    return curate(write_dataset(tmp_path / "in", tars=1, samples=3), "--images_per_tar=2", ALL)


def relist(output: Dataset, change) -> None:
    """Lets ``change`` edit the manifest's list of sidecars, by name, then makes it agree with the files there are."""
    document = output.manifest
    names = change({sidecar["file"] for sidecar in document["sidecars"]})
    facts = [(name, *files.measure(str(output.directory / name))) for name in sorted(names)]
    document["sidecars"] = [{"file": name, "bytes": size, "sha256": sha256} for name, size, sha256 in facts]
    (output.directory / "_manifest.json").write_text(json.dumps(document))


def test_verify_names_damaged_missing_and_stray_sidecars(small):
    index = small.tars[0].with_suffix(".idx")
    index.unlink()
    (small.directory / "sizes.json").write_text("{}\n")
    card = small.directory / "README.md"
    card.write_bytes(card.read_bytes().replace(b"3 images", b"4 images"))
    (small.directory / "images-0123456789ab-000000.idx").write_text("v1.2 0\n")
    found = sorted(verify.faults(str(small.directory)))
    assert len(found) == 4
    assert found[0].startswith("README.md has SHA-256")
    assert found[1] == "images-0123456789ab-000000.idx is not in the manifest"
    assert found[2] == f"{index.name} is missing"
    assert found[3].startswith("sizes.json has 3 bytes, not")


@pytest.mark.parametrize("name", ["README.md", "sizes.json", "shardindex.json", "idx"])
def test_verify_names_a_sidecar_that_is_listed_but_wrong(small, name):
    path = small.tars[0].with_suffix(".idx") if name == "idx" else small.directory / name
    data = path.read_bytes()
    place = data.rindex(b"2")
    path.write_bytes(data[:place] + b"1" + data[place + 1 :])
    relist(small, lambda names: names)
    assert list(verify.faults(str(small.directory))) == [f"{path.name} does not describe these shards"]


def test_verify_names_what_is_listed_as_a_sidecar_but_is_none_and_an_index_that_is_not_listed(small):
    (small.directory / "notes.txt").write_text("stray")
    index = small.tars[1].with_suffix(".idx")
    os.remove(index)
    relist(small, lambda names: names - {index.name} | {"notes.txt"})
    assert list(verify.faults(str(small.directory))) == [
        "notes.txt is listed as a sidecar, but is none",
        f"{index.name} is not in the manifest, as other indices are",
    ]


def test_every_column_type_has_a_name_in_the_card():
    schema = dataset_schema(8, {})
    features = [sidecars._feature(field) for field in schema]
    assert features == datasets.Features.from_arrow_schema(pa.schema(schema))._to_yaml_list()

"""The report: what it says is what the Parquet files say, and it comes with every run."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import tree
from PIL import Image
from reports import HOSTILE, Report, kept, read_report, scores
from tars import image_bytes, sample_members, write_dataset, write_tar
from unsteady import PREFIX

from beam_curate import options, report, verify
from beam_curate.__main__ import main
from beam_curate.formats.parquet import REJECTS_SCHEMA, dataset_schema
from beam_curate.report import MOST_BYTES
from beam_curate.report.__main__ import main as report_main
from beam_curate.report.facts import gather
from beam_curate.report.thumbnails import MOST_BYTES as MOST_THUMBNAIL_BYTES


class TestWhatItSays:
    @pytest.fixture(scope="class")
    def page(self, pictures) -> Report:
        return read_report(pictures.directory)

    def test_the_funnel_counts_every_step(self, pictures, page):
        a, _ = scores(pictures)
        readable = len(pictures.rows) + sum(row["stage"] == "filter" for row in pictures.rejects)
        above = np.count_nonzero(a >= 5)
        written = pictures.manifest["images"]["written"]
        assert (
            f"120 read 100.0% {readable} readable {100 * readable / 120:.1f}% "
            f"{above} aesthetic score at least 5 {100 * above / 120:.1f}% "
            f"{written} NSFW score below 0.5 {100 * written / 120:.1f}% "
            f"{written} written {100 * written / 120:.1f}%"
        ) in page.words

    def test_the_run_s_own_thresholds_are_stops_and_give_the_count_of_the_manifest(self, pictures, page):
        axes = page.data["axes"]
        assert axes["aesthetic"]["stops"][axes["aesthetic"]["start"]] == 5
        assert axes["nsfw"]["stops"][axes["nsfw"]["start"]] == 0.5
        starts = {name: axis["start"] for name, axis in axes.items()}
        assert page.kept(**starts) == pictures.manifest["images"]["written"] == page.data["written"]

    def test_every_stop_of_both_sliders_counts_what_the_filters_would_keep(self, pictures, page):
        axes = page.data["axes"]
        for i in range(0, len(axes["aesthetic"]["stops"]), 9):
            for j in range(0, len(axes["nsfw"]["stops"]), 9):
                expected = kept(pictures, axes["aesthetic"]["stops"][i], axes["nsfw"]["stops"][j])
                assert page.kept(aesthetic=i, nsfw=j) == expected

    def test_rejects_come_by_reason_with_examples(self, pictures, page):
        for reason, count in pictures.manifest["images"]["rejected"].items():
            assert f"{count} \u00d7 {reason}" in page.words
        details = [row["detail"] for row in pictures.rejects if row["reason"] == "undecodable"]
        assert sum(" ".join(detail.split()) in page.words for detail in details) == min(5, len(details))

    def test_the_sheets_show_the_lowest_the_highest_and_the_nearest_of_each_side(self, pictures, page):
        a, n = scores(pictures)
        shown = Counter(re.findall(r"aesthetic (\S+) NSFW (\S+)", page.words))

        def shows(score):
            (i,) = np.flatnonzero(a == score)
            return shown[f"{a[i]:.4f}", f"{n[i]:.4f}"] > 0

        below, above = np.sort(a[a < 5])[::-1], np.sort(a[a >= 5])
        for score in (a.min(), a.max(), *below[:8], *above[:8]):
            assert shows(score), score
        assert "Just below the threshold of 5: these fail it" in page.words
        assert "At or just above 0.5: these fail it" in page.words

    def test_every_thumbnail_is_a_small_picture_and_high_nsfw_scores_are_hidden(self, pictures, page):
        import base64

        images = page.all("img")
        assert len(images) == 2 * (24 + 8 + 8)
        for image in images:
            kind, data = image["src"].split(",")
            assert kind == "data:image/webp;base64"
            with Image.open(io.BytesIO(base64.b64decode(data))) as small:
                assert max(small.size) == 176
        hidden = [button for button in page.all("button") if button.get("class") == "frame blurred"]
        shown = [float(score) for score in re.findall(r"NSFW (-?[\d.e-]+)", page.text)]
        assert len(hidden) == sum(score >= 0.5 for score in shown) > 0
        assert all(button["aria-pressed"] == "false" for button in hidden)

    def test_models_configuration_and_shards_are_there(self, pictures, page):
        models = pictures.manifest["models"]
        for value in (
            models["encoder"]["weights_sha256"],
            models["encoder"]["fingerprint"],
            models["aesthetic_head"]["sha256"],
            models["nsfw_head"]["sha256"],
            *(shard["tar"] for shard in pictures.manifest["shards"]),
        ):
            assert value in page.words
        assert "images_per_tar 10" in page.words

    def test_every_plot_has_its_text_and_its_numbers(self, pictures, page):
        a, _ = scores(pictures)
        specs = page.data["specs"]
        assert set(specs) == {"plot-aesthetic", "plot-nsfw", "plot-both", "plot-sides", "plot-ratios"}
        assert all(spec["description"] for spec in specs.values())
        assert page.text.count("The numbers of “") == len(specs)
        assert f"{np.count_nonzero(a >= 5)} are at least this run's threshold of 5, the dashed line." in page.words
        values = specs["plot-aesthetic"]["data"]["values"]
        assert sum(value["n"] for value in values) == len(a)

    def test_it_needs_nothing_from_elsewhere(self, page):
        for tag, attributes in page.elements:
            for name in ("src", "href", "action", "data", "srcset"):
                value = attributes.get(name) or ""
                assert not value or value.startswith(("data:image/webp;base64,", "#")), (tag, value)
        assert page.policy_allows_its_scripts()
        assert len(page.scripts) == 3


class TestTheImagesSection:
    def test_formats_captions_and_duplicates(self, tmp_path, curate):
        same = image_bytes(1)
        write_tar(
            tmp_path / "in" / "a.tar",
            [
                ("a.jpg", same),
                ("a.txt", b"a caption"),
                ("b.jpg", same),
                ("b.txt", b" \n"),
                ("c.png", image_bytes(2, format="PNG")),
                ("d.jpg", same),
                ("e.webp", image_bytes(3, size=(600, 200), format="WEBP")),
                ("e.json", b'{"caption": "from json"}'),
            ],
        )
        output = curate(str(tmp_path / "in"), "--report")
        words = read_report(output.directory).words
        assert "2 of 5 written images (40.0%) have a caption" in words
        assert "2 readable images have the same bytes as another one, in 1 group." in words
        assert f"3 \u00d7 SHA-256 {output.rows[0]['sha256'][:16]}" in words
        assert "below 64 px 4 0" in words
        assert "128 to 255 px 1 0" in words
        assert "3:1 and above 1 0" in words
        formats = gather(str(output.directory), None).formats
        assert formats == (Counter(jpeg=3, png=1, webp=1), Counter())

    def test_formats_of_rejected_images_come_from_the_embedding_store(self, tmp_path, curate):
        write_tar(tmp_path / "in" / "a.tar", [("a.jpg", image_bytes(1)), ("b.png", image_bytes(2, format="PNG"))])
        flags = ["--aesthetic_threshold=1000"]
        source = f"--input={tmp_path}/in"
        common = [source, "--clip_model=demo", "--inference_batch_size=8", "--noreport", *flags]
        assert main([*common, f"--output_dir={tmp_path}/with"]) == 0
        assert main([*common, f"--output_dir={tmp_path}/without", "--embeddings_dir=none"]) == 0
        assert gather(f"{tmp_path}/with", None).formats == (Counter(), Counter(jpeg=1, png=1))
        assert gather(f"{tmp_path}/without", None).formats == (Counter(), Counter({None: 2}))

    def test_duplicates_are_estimated_where_there_are_too_many_to_remember(self, tmp_path, curate, monkeypatch):
        pictures = [image_bytes(i, size=(8, 8)) for i in range(200)]
        members = [(f"{i}{copy}.jpg", data) for i, data in enumerate(pictures) for copy in "ab"[: 1 + i % 2]]
        write_tar(tmp_path / "in" / "a.tar", members)
        output = curate(str(tmp_path / "in"))
        exact = gather(str(output.directory), None).duplicates
        assert (exact.share, exact.groups, exact.copies) == (1, 100, 100)
        monkeypatch.setattr("beam_curate.report.facts.MOST_DIGESTS", 100)
        estimated = gather(str(output.directory), None).duplicates
        assert estimated.share == 4
        assert estimated.images <= 100
        assert 60 <= estimated.copies <= 140


class TestTheCommand:
    def test_it_is_the_run_s_own_with_other_thresholds(self, tmp_path, curate):
        write_dataset(tmp_path / "in it's", tars=2, samples=4)
        output = curate(
            f"{tmp_path}/in it's/*.tar,{tmp_path}/in it's/00000.tar",
            "--report",
            "--images_per_tar=3",
            "--member_names=sequential",
            "--nowrite_embeddings",
            "--limit=1",
            "--max_image_pixels=5000",
            "--sidecars=dali,sizes",
            output=tmp_path / "out put",
        )
        command = read_report(output.directory).command
        words = shlex.split(command)
        assert words[0] == "beam-curate" and words[-1] == "--overwrite"
        chosen = options.parse([*words[1:], "--aesthetic_threshold=-100.0", "--nsfw_threshold=100.0"])
        for name, value in output.manifest["config"].items():
            if hasattr(chosen, name) and name != "precision":
                assert getattr(chosen, name) == value, name
        assert chosen.output_dir == str(output.directory)
        assert chosen.sidecars == "sizes,dali"
        assert "--precision" not in command

    def test_running_it_keeps_as_many_images_as_the_page_said(self, tmp_path, curate):
        output = curate(write_dataset(tmp_path / "in", tars=2, samples=12), "--report")
        page = read_report(output.directory)
        axes = page.data["axes"]
        stop = len(axes["aesthetic"]["stops"]) // 2
        threshold = axes["aesthetic"]["stops"][stop]
        expected = page.kept(aesthetic=stop, nsfw=axes["nsfw"]["start"])
        assert 0 < expected < 24
        flags = [f"--aesthetic_threshold={threshold}", "--nsfw_threshold=100.0"]
        assert main([*shlex.split(page.command)[1:], *flags]) == 0
        assert output.manifest["images"]["written"] == expected
        again = read_report(output.directory)
        assert again.data["axes"]["aesthetic"]["stops"][again.data["axes"]["aesthetic"]["start"]] == threshold
        assert f"{expected} written" in again.words
        assert verify.main([str(output.directory)]) == 0


class TestWithTheRun:
    def test_every_run_writes_it_and_verify_takes_it(self, tmp_path, curate, capsys):
        output = curate(write_dataset(tmp_path / "in", tars=1, samples=3), "--report")
        assert f"report: {output.directory}/_report.html" in capsys.readouterr().out
        assert verify.main([str(output.directory)]) == 0

    def test_noreport_leaves_it_out(self, tmp_path, curate):
        output = curate(write_dataset(tmp_path / "in", tars=1, samples=3), "--noreport")
        assert not (output.directory / "_report.html").exists()

    def test_the_same_run_again_leaves_it_alone_and_brings_back_a_missing_or_spoilt_one(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=3)
        output = curate(source, "--report")
        path = output.directory / "_report.html"
        expected, time = path.read_bytes(), os.stat(path).st_mtime_ns
        curate(source, "--report")
        assert os.stat(path).st_mtime_ns == time
        path.unlink()
        curate(source, "--report")
        assert path.read_bytes() == expected
        path.write_bytes(b"spoilt")
        curate(source, "--report")
        assert path.read_bytes() == expected

    def test_what_a_run_killed_while_it_wrote_the_report_has_left_is_removed(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=3)
        output = curate(source)
        (output.directory / "_tmp.0123456789ab._report.html").write_bytes(b"half a p")
        curate(source, "--report")
        assert list(verify.faults(str(output.directory))) == []
        assert not list(output.directory.glob("_tmp.*"))

    def test_a_replaced_dataset_takes_its_report_with_it(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=3)
        output = curate(source, "--report")
        curate(source, "--images_per_tar=2", "--overwrite")
        assert not (output.directory / "_report.html").exists()

    def test_the_bytes_depend_on_nothing_but_the_dataset(self, tmp_path, curate, pictures):
        expected = (pictures.directory / "_report.html").read_bytes()
        script = "import sys; from beam_curate import report; sys.stdout.buffer.write(report.make(sys.argv[1]))"
        assert report.make(str(pictures.directory)) == expected
        ran = subprocess.run(
            [sys.executable, "-c", script, str(pictures.directory)],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            capture_output=True,
            check=True,
        )
        assert ran.stdout == expected

    def test_a_report_that_cannot_be_made_is_a_warning(self, tmp_path, curate, capsys, monkeypatch):
        def fail(*arguments):
            raise RuntimeError("no such luck")

        monkeypatch.setattr("beam_curate.report.page.render", fail)
        output = curate(write_dataset(tmp_path / "in", tars=1, samples=2), "--report")
        said = capsys.readouterr().err
        assert "warning: the report could not be made (no such luck)" in said
        assert f"python -m beam_curate.report {output.directory}" in said
        assert output.manifest["images"]["written"] == 2


class TestTheCommandLine:
    def test_it_writes_the_page_where_it_is_told_to(self, tmp_path, pictures, capsys):
        target = tmp_path / "elsewhere.html"
        assert report_main([str(pictures.directory), f"--output={target}"]) == 0
        assert capsys.readouterr().out == f"{target}\n"
        assert target.read_bytes() == (pictures.directory / "_report.html").read_bytes()

    def test_an_unfinished_dataset_is_refused_by_name(self, tmp_path, capsys):
        assert report_main([str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"report: {tmp_path}/_manifest.json is missing: the dataset is not finished\n"

    def test_unknown_flags_are_refused(self, tmp_path, capsys):
        assert report_main([str(tmp_path), "--projct=x"]) == 2
        assert "--projct" in capsys.readouterr().err

    def test_a_file_that_is_gone_is_named(self, tmp_path, curate, capsys):
        output = curate(write_dataset(tmp_path / "in", tars=1, samples=2))
        gone = output.tars[0].with_suffix(".parquet")
        gone.unlink()
        assert report_main([str(output.directory)]) == 1
        assert str(gone) in capsys.readouterr().err

    def test_it_works_through_beam_s_file_systems(self, tmp_path, pictures):
        shutil.copytree(pictures.directory, tmp_path / "out")
        (tmp_path / "out" / "_report.html").unlink()
        assert report_main([f"{PREFIX}{tmp_path}/out"]) == 0
        page = read_report(tmp_path / "out")
        assert page.data == read_report(pictures.directory).data
        assert f"--output_dir={PREFIX}{tmp_path}/out" in page.command


class TestWhatIsMissing:
    def test_everything_rejected_still_has_plots_sheets_and_sliders(self, tmp_path, curate):
        output = curate(write_dataset(tmp_path / "in", tars=1, samples=5), "--report", "--max_image_pixels=99999")
        again = [f"--input={tmp_path}/in", f"--output_dir={output.directory}", "--clip_model=demo", "--overwrite"]
        assert main([*again, "--aesthetic_threshold=1000", "--max_image_pixels=99999"]) == 0
        page = read_report(output.directory)
        assert output.manifest["shards"] == []
        axes = page.data["axes"]
        assert axes["aesthetic"]["stops"][axes["aesthetic"]["start"]] == 1000
        assert page.kept(aesthetic=axes["aesthetic"]["start"], nsfw=axes["nsfw"]["start"]) == 0
        assert page.kept(aesthetic=0, nsfw=len(axes["nsfw"]["stops"]) - 1) == 5
        assert len(page.all("img")) == 2 * 5 + 5 + 5

    @pytest.mark.parametrize(
        ("members", "note"),
        [([], "There was no image in the input."), ([("a.txt", b"text")], "No image has a score")],
    )
    def test_an_empty_dataset(self, tmp_path, curate, members, note):
        write_tar(tmp_path / "in" / "a.tar", members)
        page = read_report(curate(str(tmp_path / "in"), "--report").directory)
        assert note in page.words
        assert not page.all("input") and not page.all("img")
        assert page.data["cells"] == [] and page.data["specs"] == {}

    def test_without_heads_there_are_no_sliders(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=2)
        none = curate(source, "--report", "--aesthetic_head=none", "--nsfw_head=none", output=tmp_path / "none")
        page = read_report(none.directory)
        assert "curated without heads" in page.words
        assert not page.all("input")

    @pytest.mark.parametrize(("off", "left"), [("aesthetic", "nsfw"), ("nsfw", "aesthetic")])
    def test_one_head_has_one_slider(self, tmp_path, curate, off, left):
        source = write_dataset(tmp_path / "in", tars=1, samples=6)
        output = curate(source, "--report", f"--{off}_head=none")
        page = read_report(output.directory)
        assert [slider["data-axis"] for slider in page.all("input")] == [left]
        assert set(page.data["specs"]) == {f"plot-{left}", "plot-sides", "plot-ratios"}
        stops = page.data["axes"][left]["stops"]
        values = np.array([row[f"{left}_score"] for row in output.rows])
        for i, stop in enumerate(stops):
            expected = np.count_nonzero(values >= stop if left == "aesthetic" else values < stop)
            assert page.kept(**{left: i}) == expected
        assert f"--{off}_head=none" in page.command

    def test_without_an_embedding_store_it_says_so_and_shows_the_rejected_all_the_same(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=1, samples=6)
        output = curate(source, "--report", "--embeddings_dir=none")
        middle = sorted(row["aesthetic_score"] for row in output.rows)[3]
        flags = [f"--input={source}", "--clip_model=demo", "--overwrite", "--embeddings_dir=none"]
        flags += [f"--output_dir={output.directory}", f"--aesthetic_threshold={middle!r}", "--nsfw_threshold=100"]
        assert main(flags) == 0
        page = read_report(output.directory)
        assert "There is no embedding store with this dataset" in page.words
        assert "not known 0 3" in page.words
        assert "--embeddings_dir=none --" in page.command and "--precision=fp32" in page.command
        assert "This picture is not where it was" not in page.words
        assert len(page.all("img")) == 2 * 6 + 3 + 3 + 6

    def test_pictures_that_are_gone_or_changed_have_a_placeholder(self, tmp_path, curate):
        source = write_dataset(tmp_path / "in", tars=2, samples=3)
        output = curate(source, "--report", "--nsfw_head=none")
        flags = ["--clip_model=demo", "--overwrite", "--nsfw_head=none", "--aesthetic_threshold=1000"]
        assert main([f"--input={source}", f"--output_dir={output.directory}", *flags]) == 0
        shown = len(read_report(output.directory).all("img"))
        assert shown == 12
        (tmp_path / "in" / "00000.tar").unlink()
        changed = bytearray((tmp_path / "in" / "00001.tar").read_bytes())
        changed[700] ^= 1
        (tmp_path / "in" / "00001.tar").write_bytes(changed)
        assert report_main([str(output.directory)]) == 0
        page = read_report(output.directory)
        assert page.words.count("This picture is not where it was any more, or has changed.") == 2 * (3 + 1)
        assert len(page.all("img")) == 2 * 2


class TestData:
    def test_markup_in_keys_captions_and_paths_is_text(self, hostile):
        page = read_report(hostile.directory)
        assert len(page.scripts) == 3
        assert page.policy_allows_its_scripts()
        assert not page.all("b")
        assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
        captions = [row["caption"] for row in hostile.rows]
        assert len(captions) == len(HOSTILE) - 1
        for caption in captions:
            assert " ".join(caption.replace("\0", "\ufffd").split()) in page.words.replace("\0", "\ufffd")
        directions = [attributes for tag, attributes in page.elements if attributes.get("class") == "caption"]
        assert directions and all(attributes["dir"] == "auto" for attributes in directions)


def test_noise_that_does_not_compress_gives_small_thumbnails(tmp_path, curate):
    rng = np.random.default_rng(0)
    members = []
    for i in range(90):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (220, 220, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=95)
        members += [(f"{i}.jpg", buffer.getvalue()), (f"{i}.txt", b"x" * 5000)]
    write_tar(tmp_path / "in" / "a.tar", members)
    page = read_report(curate(str(tmp_path / "in"), "--report").directory)
    sizes = [len(image["src"]) for image in page.all("img")]
    assert len(sizes) == 2 * (24 + 8)
    assert max(sizes) <= MOST_THUMBNAIL_BYTES * 4 / 3 + 30
    # Twice as many pictures at most, each as large as it may be, leave room.
    assert len(page.bytes) + 80 * MOST_THUMBNAIL_BYTES * 4 / 3 < MOST_BYTES


def test_hundreds_of_thousands_of_images_make_a_page_of_the_same_size(tmp_path):
    """Parquet and manifest only, without tars: every thumbnail is a placeholder."""
    rng = np.random.default_rng(0)
    images, shards = 300_000, 300
    schema = dataset_schema(None, {})
    rejected = images // 10
    document = {
        "format_version": 1,
        "input": [f"gs://bucket/{'long/' * 30}{i:06d}.tar" for i in range(500)],
        "config": {"images_per_tar": 1000, "aesthetic_threshold": 4.5, "nsfw_threshold": 0.3, "clip_model": "demo"},
        "models": {"aesthetic_head": {"name": "a" * 100_000}, "nsfw_head": {"name": "n"}, "encoder": {}},
        "tars": {"read": 500, "rejected": 0},
        "images": {
            "read": images,
            "written": images - rejected,
            "rejected": {"below_aesthetic_threshold": rejected},
        },
        "hash": "0" * 12,
        "shards": [],
        "rejects": [],
    }
    pool = rng.integers(0, 256, (1000, 32), dtype=np.uint8)
    a = rng.uniform(4.5, 9.5, images - rejected).astype(np.float32)
    n = rng.uniform(0, 0.3, images - rejected).astype(np.float32).clip(0, 0.2999)

    def facts(count, a, n):
        digests = pool.copy()
        digests[:, :8] = rng.integers(0, 256, (1000, 8), dtype=np.uint8)
        texts = [bytes(digests[i % 1000]).hex() for i in range(count)]
        return {
            "width": rng.integers(16, 6000, count),
            "height": rng.integers(16, 6000, count),
            "sha256": texts,
            "aesthetic_score": a,
            "nsfw_score": n,
        }

    written = (images - rejected) // shards
    for index in range(shards):
        part = slice(index * written, (index + 1) * written)
        columns = {
            "tar_file": [f"images-{index}.tar"] * written,
            "caption": ["<" * 2000] + ["x"] * (written - 1),
            "format": ["jpeg"] * written,
            **facts(written, a[part], n[part]),
        }
        for name in ("image_id", "member_name", "original_path", "original_key", "metadata"):
            columns[name] = (
                [f"&{index}/{i}" + "&" * 400 for i in range(written)] if index % 100 == 0 else ["k"] * written
            )
        name = f"images-{index}.parquet"
        pq.write_table(pa.table({field.name: columns[field.name] for field in schema}, schema), tmp_path / name)
        size = (tmp_path / name).stat().st_size
        document["shards"].append(
            {"tar": f"images-{index}.tar", "parquet": name, "images": written, "tar_bytes": 1, "tar_sha256": "0" * 64}
            | {"parquet_bytes": size, "parquet_sha256": "0" * 64}
        )
    columns = {
        "source": ["gs://bucket/a.tar"] * rejected,
        "index": np.arange(rejected),
        "key": ["k"] * rejected,
        "stage": ["filter"] * rejected,
        "reason": ["below_aesthetic_threshold"] * rejected,
        "detail": ["<script>" * 100] * rejected,
        **facts(rejected, rng.uniform(0, 4.4999, rejected).astype(np.float32), np.full(rejected, 0.1, np.float32)),
    }
    columns["source"] = [f"{tmp_path}/gone.tar"] * rejected
    pq.write_table(
        pa.table({field.name: columns[field.name] for field in REJECTS_SCHEMA}, REJECTS_SCHEMA), tmp_path / "r.parquet"
    )
    document["rejects"].append({"parquet": "r.parquet", "rows": rejected, "parquet_bytes": 0, "parquet_sha256": ""})
    (tmp_path / "_manifest.json").write_text(json.dumps(document))

    page = Report(report.make(str(tmp_path)))
    assert len(page.bytes) < 2_500_000
    axes = page.data["axes"]
    assert page.kept(aesthetic=axes["aesthetic"]["start"], nsfw=axes["nsfw"]["start"]) == images - rejected
    stop = axes["aesthetic"]["stops"].index(7.0)
    assert page.kept(aesthetic=stop, nsfw=axes["nsfw"]["start"]) == np.count_nonzero(a >= 7.0)
    assert "The first 200 shards one by one" in page.words
    assert not page.all("textarea")  # 80 KB of patterns


def test_the_page_costs_a_small_run_little(pictures, tmp_path):
    """The first report of a process loads the plotting library; the next ones show what the rest costs."""
    import time

    started = time.process_time()
    report.write(str(pictures.directory), f"{tmp_path}/again.html")
    assert time.process_time() - started < 3


def test_reports_belong_to_the_directory(tmp_path, pictures):
    assert "_report.html" in tree(pictures.directory)
    assert list(verify.faults(str(pictures.directory))) == []


def test_sample_members_without_scores_are_not_in_the_sheets(tmp_path, curate):
    write_tar(tmp_path / "in" / "a.tar", [*sample_members("good", 1), ("bad.jpg", b"no image")])
    facts = gather(str(curate(str(tmp_path / "in")).directory), None)
    assert facts.grid.total == 1
    assert {picture.key for sheet in facts.sheets for picture in (*sheet.spread, *sheet.above)} == {"good"}
    assert list(facts.examples) == ["undecodable"]
    assert Path(facts.examples["undecodable"][0].source).name == "a.tar"

"""Everything on ``gs://``, through Google's own client, against fake-gcs-server; and what becomes of faults on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
from buckets import BUCKET, bucket, objects, upload
from engines import requests_in
from outputs import tree
from reports import Report
from tars import sample_members, write_tar

from beam_curate import verify
from beam_curate.models import heads
from beam_curate.report.__main__ import main as report_main

RANGE = 16 << 20  # bytes that Beam asks for at once


@pytest.fixture
def steady(gcs):
    proxy, _ = gcs
    yield proxy
    proxy.spoil = lambda method, path: None
    proxy.spoiled.clear()


@pytest.fixture(scope="module")
def undisturbed(tars, curate) -> dict[str, str]:
    curate(tars, f"gs://{BUCKET}/undisturbed")
    return objects("undisturbed")


def tars_in(files: dict[str, str]) -> list[str]:
    return [digest for name, digest in sorted(files.items()) if name.endswith(".tar")]


def test_input_output_store_and_verify_are_on_the_bucket_and_the_tars_have_the_bytes_of_a_local_run(
    undisturbed, source, curate, tars, tmp_path, capsys
):
    # The suffix of a contested key comes from the source's URI, so names of members are compared without keys.
    curate(source, tmp_path, "--member_names=sequential")
    curate(tars, f"gs://{BUCKET}/sequential", "--member_names=sequential")
    assert tars_in(objects("sequential")) == tars_in(tree(tmp_path)) != []
    assert sum(name.startswith("_embeddings/") for name in undisturbed) == 41
    assert not any("_tmp." in name for name in undisturbed)
    assert verify.main([f"gs://{BUCKET}/undisturbed"]) == 0
    capsys.readouterr()
    curate(tars, f"gs://{BUCKET}/again", f"--embeddings_dir=gs://{BUCKET}/undisturbed/_embeddings")
    assert "0 images embedded, 2000 from the embedding store" in capsys.readouterr().out
    again = objects("again")
    assert again == {name: digest for name, digest in undisturbed.items() if not name.startswith("_embeddings/")}


def test_the_report_of_a_dataset_on_the_bucket(undisturbed):
    page = f"gs://{BUCKET}/pages/report.html"
    assert report_main([f"gs://{BUCKET}/undisturbed", f"--output={page}"]) == 0
    blob = bucket().get_blob("pages/report.html")
    assert blob.content_type == "text/html; charset=utf-8"
    found = Report(blob.download_as_bytes())
    starts = {name: axis["start"] for name, axis in found.data["axes"].items()}
    assert found.kept(**starts) == found.data["written"] > 400
    assert len(found.all("img")) >= 2 * (24 + 8)
    assert "This picture is not where it was" not in found.words
    assert f"--output_dir=gs://{BUCKET}/undisturbed" in found.command


def test_heads_are_read_from_the_bucket(gcs, curate, tars):
    demo = Path(heads.__file__).parent / "demo"
    weights = upload(sorted(demo.glob("*.safetensors")), "weights")
    names = sorted(path.name for path in demo.glob("*.safetensors"))
    aesthetic, nsfw = (next(name for name in names if kind in name) for kind in ("aesthetic", "nsfw"))
    curate(
        tars,
        f"gs://{BUCKET}/with-heads",
        "--limit=2",
        f"--aesthetic_head={weights}/{aesthetic}",
        f"--nsfw_head={weights}/{nsfw}",
    )
    curate(tars, f"gs://{BUCKET}/without-heads", "--limit=2")
    assert tars_in(objects("with-heads")) == tars_in(objects("without-heads")) != []


def test_a_checkpoint_is_read_from_the_bucket(gcs, curate, tars, b32_checkpoint):
    checkpoint = f"{upload([b32_checkpoint], 'weights')}/{os.path.basename(b32_checkpoint)}"
    flags = ("--limit=1", "--clip_model=ViT-B-32", "--aesthetic_head=none", "--nsfw_head=none")
    curate(tars, f"gs://{BUCKET}/b32", f"--clip_pretrained={checkpoint}", *flags)
    (encoder,) = (name for name in objects("b32") if name.endswith("_encoder.json"))
    stated = json.loads(bucket().blob(f"b32/{encoder}").download_as_bytes())
    assert stated["weights_sha256"] == hashlib.sha256(Path(b32_checkpoint).read_bytes()).hexdigest()
    assert stated["clip_pretrained"] == checkpoint


@pytest.mark.parametrize("fault", [429, 503, "cut"])
def test_faults_on_the_way_are_tried_again_and_leave_no_trace(steady, undisturbed, curate, tars, fault):
    turns = itertools.count(1)
    # Only downloads have a body worth cutting.
    steady.spoil = lambda method, path: (
        fault if (fault != "cut" or path.startswith("/download")) and next(turns) % 25 == 0 else None
    )
    curate(tars, f"gs://{BUCKET}/faults-{fault}")
    assert steady.spoiled[fault] >= 3
    steady.spoil = lambda method, path: None
    assert objects(f"faults-{fault}") == undisturbed


def test_an_upload_that_breaks_off_publishes_nothing_and_the_next_run_continues(
    steady, undisturbed, curate, tars, capsys
):
    steady.spoil = lambda method, path: (
        403 if (method == "PUT" and path.endswith(".tar")) or "000003.tar" in path else None
    )
    curate(tars, f"gs://{BUCKET}/refused", code=1)
    said = capsys.readouterr().err
    assert f"beam-curate: cannot write gs://{BUCKET}/refused/images-" in said
    assert "Traceback" not in said
    steady.spoil = lambda method, path: None
    left = objects("refused")
    assert "_manifest.json" not in left
    assert not any("000003" in name for name in left)
    assert left.items() <= undisturbed.items()
    curate(tars, f"gs://{BUCKET}/refused")
    assert "0 images embedded, 2000 from the embedding store" in capsys.readouterr().out
    assert objects("refused") == undisturbed


def test_a_bucket_that_these_credentials_may_not_use_is_said_in_one_line(steady, curate, tars, tmp_path, capsys):
    steady.spoil = lambda method, path: 403
    for source, output in ((tars, tmp_path / "out"), (str(tmp_path / "none"), f"gs://{BUCKET}/forbidden")):
        curate(source, output, code=1)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert f"gs://{BUCKET}/" in said
        assert said.rstrip().endswith("; see that these credentials may use the bucket")


def test_copying_costs_a_handful_of_requests_for_each_tar_and_none_for_each_member(gcs, curate, tmp_path):
    _, log = gcs
    samples = 300
    paths = []
    for number in range(2):
        members = []
        for index in range(samples):
            members += sample_members(f"{number}{index:04d}", seed=index)
            members.append((f"{number}{index:04d}.bin", os.urandom(100_000)))
        paths.append(write_tar(tmp_path / f"{number}.tar", members))
    sizes = [os.path.getsize(path) for path in paths]
    assert min(sizes) > 1.5 * RANGE
    tars = upload(paths, "large")
    curate(tars, f"gs://{BUCKET}/first", "--aesthetic_threshold=-100")
    before = len(requests_in(log))
    # Nothing is embedded now: what is left is to copy two tars into two shards, the second of them from both.
    flags = ("--aesthetic_threshold=-100", "--images_per_tar=400")
    curate(tars, f"gs://{BUCKET}/copied", f"--embeddings_dir=gs://{BUCKET}/first/_embeddings", *flags)
    requests = requests_in(log)[before:]
    ranges = [path for method, path in requests if path.startswith("/download") and "large%2F" in path]
    spans = (sizes[0], sizes[1] // 3, sizes[1] - sizes[1] // 3)
    # A span is read in ranges of 16 MiB; reading ahead by 1 MiB may ask for one behind its end.
    assert len(ranges) <= sum(size // RANGE + 2 for size in spans)
    uploads = [path for method, path in requests if method == "PUT" and ".tar" in path]
    assert len(uploads) <= sum(size // RANGE + 1 for size in sizes) + 2
    assert len(requests) <= 100 < samples

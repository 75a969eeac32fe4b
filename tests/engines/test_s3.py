"""Everything on ``s3://``, through boto3, against moto's server (extra ``aws``)."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

import boto3
import pytest
from engines import FaultyProxy, free_port, server
from outputs import tree

from beam_curate import verify
from beam_curate.models import heads
from beam_curate.report.__main__ import main as report_main

BUCKET = "bucket"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A proxy before a storage server that has a bucket; its address."""
    port, behind = free_port(), free_port()
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(behind)]
    with server(command, behind, tmp_path_factory.mktemp("s3") / "log"), FaultyProxy(port, behind) as proxy:
        client(port).create_bucket(Bucket=BUCKET)
        yield proxy
    patch.undo()


def client(port: int):
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")


def endpoint(proxy: FaultyProxy) -> str:
    return f"--s3_endpoint_url=http://127.0.0.1:{proxy.server_port}"


@pytest.fixture(scope="module")
def tars(s3, source) -> str:
    for path in sorted(Path(source).glob("0000[0-5].tar")):
        client(s3.server_port).upload_file(str(path), BUCKET, f"in/{path.name}")
    return f"s3://{BUCKET}/in/*.tar"


def objects(proxy: FaultyProxy, prefix: str) -> dict[str, str]:
    """SHA-256 of every object below a prefix, by name."""
    store = client(proxy.server_port)
    found = store.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/").get("Contents", [])
    return {
        entry["Key"][len(prefix) + 1 :]: hashlib.sha256(
            store.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        ).hexdigest()
        for entry in found
    }


def test_input_output_store_and_verify_are_on_the_bucket_and_the_tars_have_the_bytes_of_a_local_run(
    s3, source, tars, curate, tmp_path, capsys
):
    output = f"s3://{BUCKET}/out"
    # The suffix of a contested key comes from the source's URI, so names of members are compared without keys.
    curate(tars, output, endpoint(s3), "--member_names=sequential")
    curate(f"{source}/0000[0-5].tar", tmp_path, "--member_names=sequential")
    found = objects(s3, "out")
    assert [found[name] for name in sorted(found) if name.endswith(".tar")] == [
        digest for name, digest in sorted(tree(tmp_path).items()) if name.endswith(".tar")
    ]
    assert sum(name.endswith(".tar") for name in found) >= 2
    assert sum(name.startswith("_embeddings/") for name in found) == 7
    assert not any("_tmp." in name for name in found)
    assert verify.main([output, endpoint(s3)]) == 0
    assert report_main([output, endpoint(s3)]) == 0
    assert verify.main([output, endpoint(s3)]) == 0
    capsys.readouterr()
    curate(tars, output, endpoint(s3), "--images_per_tar=100", "--overwrite")
    assert "_report.html" not in objects(s3, "out")
    assert "0 images embedded, 300 from the embedding store" in capsys.readouterr().out
    assert verify.main([output, endpoint(s3)]) == 0


def test_an_upload_that_is_refused_publishes_nothing_of_it_and_the_next_run_continues(s3, tars, curate, capsys):
    curate(tars, f"s3://{BUCKET}/undisturbed", endpoint(s3))
    s3.spoil = lambda method, path: 403 if method == "PUT" and "000001.tar" in path and "images" in path else None
    curate(tars, f"s3://{BUCKET}/refused", endpoint(s3), code=1)
    s3.spoil = lambda method, path: None
    assert s3.spoiled[403] >= 1
    assert f"beam-curate: cannot write s3://{BUCKET}/refused/images-" in capsys.readouterr().err
    undisturbed, left = objects(s3, "undisturbed"), objects(s3, "refused")
    assert "_manifest.json" not in left
    assert not any("000001" in name and name.startswith("images") for name in left)
    assert left.items() <= undisturbed.items()
    curate(tars, f"s3://{BUCKET}/refused", endpoint(s3))
    assert objects(s3, "refused") == undisturbed


def test_a_bucket_that_these_credentials_may_not_use_is_said_in_one_line(s3, tars, curate, tmp_path, capsys):
    s3.spoil = lambda method, path: 403
    curate(tars, tmp_path / "out", endpoint(s3), code=1)
    s3.spoil = lambda method, path: None
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"s3://{BUCKET}/" in said
    assert said.rstrip().endswith("; see that these credentials may use the bucket")


def test_heads_are_read_from_the_bucket(s3, tars, curate):
    demo = Path(heads.__file__).parent / "demo"
    for kind in ("aesthetic", "nsfw"):
        client(s3.server_port).upload_file(str(demo / f"{kind}.safetensors"), BUCKET, f"weights/{kind}.safetensors")
    named = [f"--{kind}_head=s3://{BUCKET}/weights/{kind}.safetensors" for kind in ("aesthetic", "nsfw")]
    curate(tars, f"s3://{BUCKET}/with-heads", endpoint(s3), "--limit=1", *named)
    curate(tars, f"s3://{BUCKET}/without-heads", endpoint(s3), "--limit=1")
    tars_of = {
        prefix: sorted(digest for name, digest in objects(s3, prefix).items() if name.endswith(".tar"))
        for prefix in ("with-heads", "without-heads")
    }
    assert tars_of["with-heads"] == tars_of["without-heads"] != []


@pytest.mark.parametrize("fault", [429, 503, "cut"])
def test_faults_on_the_way_are_tried_again_and_leave_no_trace(s3, tars, curate, fault):
    curate(tars, f"s3://{BUCKET}/steady-{fault}", endpoint(s3), "--limit=2")
    s3.spoiled.clear()
    turns = itertools.count(1)

    def spoil(method: str, path: str) -> int | str | None:
        if fault != "cut":
            return fault if next(turns) % 8 == 0 else None
        downloads = method == "GET" and ".tar" in path  # only these have a body worth cutting
        return fault if downloads and next(turns) % 2 == 0 else None

    s3.spoil = spoil
    curate(tars, f"s3://{BUCKET}/faults-{fault}", endpoint(s3), "--limit=2")
    s3.spoil = lambda method, path: None
    assert s3.spoiled[fault] >= 1
    assert objects(s3, f"faults-{fault}") == objects(s3, f"steady-{fault}") != {}

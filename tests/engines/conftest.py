"""What the tests of real engines share: the input, the bytes to expect, and the servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from buckets import BUCKET, upload
from engines import FaultyProxy, free_port, go_program, server
from google.cloud import storage
from outputs import Dataset, tree
from tars import sample_members, write_tar

from beam_curate import verify
from beam_curate.__main__ import main

TARS, IMAGES = 40, 2000
FLAGS = (
    "--clip_model=demo",
    "--inference_batch_size=64",
    "--images_per_tar=40",
    "--aesthetic_threshold=3",
    "--nsfw_threshold=0.9",
    "--noreport",
)


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> str:
    """2000 images in 40 tars of very different sizes: several shards for some tars, several tars for some shards."""
    directory = tmp_path_factory.mktemp("source")
    written = 0
    for number in range(TARS):
        count = 10 + 80 * (number % 2)
        keys = range(written, written + count)
        members = [member for key in keys for member in sample_members(f"{key % 700:06d}", seed=key, size=(48, 40))]
        write_tar(directory / f"{number:05d}.tar", members)
        written += count
    assert written == IMAGES
    return str(directory)


@pytest.fixture(scope="session")
def curate():
    """Curates with the demo model, in this process; the exit code must be as expected."""

    def run(source: str, output: object, *flags: str, code: int = 0) -> None:
        assert main([f"--input={source}", f"--output_dir={output}", *FLAGS, *flags]) == code

    return run


@pytest.fixture(scope="session")
def expected(source, curate, tmp_path_factory) -> dict[str, str]:
    """SHA-256 of every file that the default runner writes."""
    output = tmp_path_factory.mktemp("default")
    curate(source, output)
    images = Dataset(output).manifest["images"]
    assert images["read"] == IMAGES
    assert 400 < images["written"] < IMAGES
    assert verify.main([str(output)]) == 0
    files = tree(output)
    assert sum(name.startswith("_embeddings/") for name in files) == TARS + 1
    return files


@pytest.fixture(scope="session")
def prism() -> str:
    return go_program("prism")


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    """A storage server behind a proxy that can spoil answers, with a bucket. Gives the proxy and the server's log."""
    port, behind = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [go_program("fake-gcs-server"), "-scheme=http", "-host=127.0.0.1", f"-port={behind}", "-backend=memory"]
    command += [f"-external-url={address}", f"-public-host=127.0.0.1:{port}"]
    patch = pytest.MonkeyPatch()
    patch.setenv("STORAGE_EMULATOR_HOST", address)
    patch.setenv("BEAM_CURATE_CACHE", str(tmp_path_factory.mktemp("cache")))
    log = tmp_path_factory.mktemp("gcs") / "log"
    with server(command, behind, log), FaultyProxy(port, behind) as proxy:
        storage.Client.create_anonymous_client().create_bucket(BUCKET, project="test")
        yield proxy, log
    patch.undo()


@pytest.fixture(scope="module")
def tars(gcs, source) -> str:
    return upload(sorted(Path(source).glob("*.tar")), "in")

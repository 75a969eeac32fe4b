"""The same bytes on every local runner, with any number of workers."""

from __future__ import annotations

import pytest
from outputs import Dataset, tree
from tars import sample_members, write_tar

from beam_curate import verify
from beam_curate.__main__ import main

TARS, IMAGES = 40, 2000

RUNNERS = {
    "DirectRunner": ["--runner=DirectRunner"],
    "FnApiRunner, 1 worker": ["--runner=FnApiRunner", "--direct_num_workers=1"],
    "FnApiRunner, 3 threads": ["--direct_num_workers=3", "--direct_running_mode=multi_threading"],
    "FnApiRunner, 2 processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "PortableRunner": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.fixture(scope="module")
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


def run(source: str, output, *flags: str) -> dict[str, str]:
    arguments = [
        f"--input={source}",
        f"--output_dir={output}",
        "--clip_model=demo",
        "--inference_batch_size=64",
        "--images_per_tar=40",
        "--aesthetic_threshold=3",
        "--nsfw_threshold=0.9",
    ]
    assert main([*arguments, *flags]) == 0
    return tree(output)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("default")
    files = run(source, output)
    images = Dataset(output).manifest["images"]
    assert images["read"] == IMAGES
    assert 400 < images["written"] < IMAGES
    assert verify.main([str(output)]) == 0
    return files


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_file_has_the_same_bytes(source, expected, tmp_path, runner):
    files = run(source, tmp_path, *RUNNERS[runner])
    assert sum(name.startswith("_embeddings/") for name in files) == TARS + 1
    assert files == expected

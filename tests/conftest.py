"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import apache_beam as beam
import open_clip
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from outputs import Dataset
from safetensors.torch import save_file

from beam_curate.__main__ import main

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real heads and photographs beside the project."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is required in CI")
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(params=["dali", "pillow"])
def decoder(request) -> str:
    return request.param


@pytest.fixture
def local_pipeline():
    """A function that makes a pipeline on the steady local runner."""

    def make(**options: object) -> beam.Pipeline:
        return beam.Pipeline("FnApiRunner", PipelineOptions(flags=[], **options))

    return make


@pytest.fixture
def curate(tmp_path):
    """Runs the command line in this process with the demo model; the exit code must be as expected.

    There is no report unless ``--report`` asks for it.
    """

    def run(source: str, *flags: str, output: Path | str | None = None, code: int = 0) -> Dataset:
        output = output or tmp_path / "output"
        quick = () if "--report" in flags else ("--noreport",)
        arguments = [f"--input={source}", f"--output_dir={output}", "--clip_model=demo", *_SMALL, *quick, *flags]
        assert main(arguments) == code
        return Dataset(output)

    return run


_SMALL = ("--inference_batch_size=16", "--aesthetic_threshold=-100", "--nsfw_threshold=100")


@pytest.fixture(scope="session")
def b32_checkpoint(tmp_path_factory) -> str:
    """A checkpoint file of the whole ViT-B-32, with seeded random weights."""
    path = tmp_path_factory.mktemp("weights") / "vit_b_32.safetensors"
    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-B-32").state_dict(), path)
    return str(path)

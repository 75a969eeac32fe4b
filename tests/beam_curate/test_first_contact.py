"""What a newcomer meets: the help, and the errors of a machine that is not set up yet, each in a line or two."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tars import write_dataset

from beam_curate.__main__ import main

NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there: no name is looked up, nothing is reached


def run_outside(tmp_path, *flags: str) -> tuple[int, str]:
    """The command line in a process of its own, with an empty home and no network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(tmp_path), "https_proxy": NOWHERE, "http_proxy": NOWHERE, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "beam_curate", f"--output_dir={tmp_path / 'out'}", "--noreport", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def error_line(said: str) -> str:
    """The only line that is the program's own; it must be the last, and short."""
    lines = [line for line in said.splitlines() if line.startswith("beam-curate: ")]
    assert len(lines) == 1, said
    assert said.rstrip().endswith(lines[0])
    assert "Traceback" not in said
    return lines[0]


def test_the_help_shows_our_flags_in_groups_with_defaults_and_an_example_and_not_beams(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for heading in ("input and output:", "model:", "scores and filters:", "behaviour:", "example:"):
        assert f"\n{heading}\n" in said
    assert "(default: ViT-L-14)" in said
    assert "beam-curate --input='photos/*.tar' --output_dir=curated" in said
    assert "--dataflow_endpoint" not in said
    assert "--runner first of all" in said
    assert len(said.splitlines()) < 120


def test_no_weights_and_no_network(tmp_path):
    source = write_dataset(tmp_path / "in", tars=1, samples=1)
    code, said = run_outside(tmp_path, f"--input={source}")
    assert code == 1
    line = error_line(said)
    assert "cannot download the weights openai of ViT-L-14" in line
    assert "--clip_pretrained takes the path of a local checkpoint file instead" in line


def test_a_refused_download_of_prism(tmp_path):
    source = write_dataset(tmp_path / "in", tars=1, samples=1)
    code, said = run_outside(tmp_path, f"--input={source}", "--clip_model=demo", "--runner=PrismRunner")
    assert code == 1
    line = error_line(said)
    assert "--runner: Beam cannot download Prism" in line
    assert "go install github.com/apache/beam/sdks/v2/go/cmd/prism@v" in line
    assert "--prism_location" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_driver(tmp_path, curate, capfd):
    curate(write_dataset(tmp_path / "in", tars=1, samples=1), "--device=cuda", code=1)
    said = capfd.readouterr().err
    assert "--device: there are images to embed, and no CUDA device was found" in said
    assert "install the GPU's driver, or give --device=cpu" in said


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("bucket", "advice"),
    [
        ("gs://bucket/out", "there are no Google Cloud credentials; run gcloud auth application-default login"),
        ("s3://bucket/out", "there are no AWS credentials; run aws configure"),
    ],
)
def test_a_bucket_without_credentials(no_credentials, tmp_path, curate, capsys, bucket, advice):
    curate(str(tmp_path), output=bucket, code=1)
    assert f"beam-curate: {bucket}: {advice}" in capsys.readouterr().err


def test_a_wrong_glob(tmp_path, curate, capsys):
    curate(f"{tmp_path}/*.tra", code=1)
    assert f"beam-curate: --input: nothing matches {tmp_path}/*.tra\n" in capsys.readouterr().err


def test_pictures_that_are_not_in_tars(tmp_path, curate, capsys):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.jpg").write_bytes(b"")
    curate(str(tmp_path / "loose"), code=1)
    assert "a directory stands for the .tar files in it" in capsys.readouterr().err
    curate(str(tmp_path / "loose" / "*.jpg"), code=1)
    assert f"--input: {tmp_path}/loose/*.jpg matches pictures; what is asked for" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_before_the_one_that_it_leaves_out(capsys):
    assert main(["--inptu=a", "--output_dir=b"]) == 2
    assert capsys.readouterr().err == "beam-curate: --inptu: no such flag; did you mean --input?\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["b.tar"], "b.tar: not a flag; quote a glob, and separate paths with commas"),
        (["--runner=Foo"], "--runner: Beam has no runner 'Foo'"),
        (["--output-dir=b"], "--output-dir: no such flag; did you mean --output_dir?"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, curate, capsys, flags, said):
    curate(f"{tmp_path}/a.tar", *flags, code=2)
    assert capsys.readouterr().err == f"beam-curate: {said}\n"

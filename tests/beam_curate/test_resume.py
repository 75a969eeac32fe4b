"""A run that is killed again and again ends with the bytes of one that never was, and does little twice."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outputs import tree
from tars import write_dataset

from beam_curate import verify
from beam_curate.__main__ import main

TARS, PER_TAR, BATCH = 24, 50, 16
FLAGS = (
    "--clip_model=demo",
    f"--inference_batch_size={BATCH}",
    "--aesthetic_threshold=-100",
    "--nsfw_threshold=100",
    "--images_per_tar=60",
    "--noreport",
)


def stored(output: Path) -> list[Path]:
    return list(output.glob("_embeddings/*/*.parquet"))


def shards(output: Path) -> list[Path]:
    return list(output.glob("images-*.parquet"))


def attempt(source: str, output: Path, log: Path, die) -> int:
    """Runs until it ends or until ``die`` says so, then kills the whole process group."""
    arguments = [
        sys.executable,
        "-m",
        "beam_curate",
        f"--input={source}",
        f"--output_dir={output}",
        "--verbose",
        *FLAGS,
    ]
    with open(log, "wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None:
            if die():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.002)
    return process.returncode


def embedded(log: Path) -> int:
    return sum(
        int(count) for count in re.findall(rb"beam_curate\.models\.clip: embedded (\d+) images", log.read_bytes())
    )


def test_kill_nine_ten_times_and_once_undisturbed(tmp_path):
    source = write_dataset(tmp_path / "in", tars=TARS, samples=PER_TAR)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    assert main([f"--input={source}", f"--output_dir={undisturbed}", *FLAGS]) == 0
    rng = random.Random(0)
    moments = [lambda n=n: len(stored(output)) >= n for n in sorted(rng.sample(range(1, TARS), 5))]
    moments += [lambda: len(stored(output)) == TARS]
    moments += [lambda: any(output.glob("_rejects*")) or any(output.glob("_tmp.*.tar"))]
    moments += [lambda n=n: len(shards(output)) >= n for n in sorted(rng.sample(range(1, 19), 2))]
    moments += [lambda: len(shards(output)) == 20]
    work, kept = 0, {}
    for number, moment in enumerate(moments):
        log = tmp_path / f"{number}.log"
        pause = rng.uniform(0, 0.03)
        code = attempt(source, output, log, lambda moment=moment, pause=pause: moment() and (time.sleep(pause) or True))
        assert code == -signal.SIGKILL, log.read_text()[-2000:]
        assert not (output / "_manifest.json").exists()
        work += embedded(log)
        for path, facts in kept.items():
            assert (path.stat().st_mtime_ns, path.stat().st_ino) == facts, f"{path} was written again"
        kept |= {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (*stored(output), *shards(output))}
    assert len(moments) >= 10
    log = tmp_path / "last.log"
    assert attempt(source, output, log, lambda: False) == 0
    work += embedded(log)
    assert work <= TARS * PER_TAR + len(moments) * (PER_TAR + BATCH)
    assert tree(output) == tree(undisturbed)
    assert not [name for name in tree(output) if "_tmp." in name]
    assert verify.main([str(output)]) == 0


@pytest.mark.parametrize("damage", ["tar", "parquet"])
def test_a_damaged_leftover_shard_is_written_again(tmp_path, curate, damage):
    source = write_dataset(tmp_path / "in", tars=1, samples=4)
    output = curate(source)
    before = tree(output.directory)
    (output.directory / "_manifest.json").unlink()
    path = next(output.directory.glob(f"images-*.{damage}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-8] if damage == "parquet" else data)
    assert tree(curate(source).directory) == before

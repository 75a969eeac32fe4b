"""What the tests of the report share: a dataset with all kinds of pictures, and a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from outputs import Dataset
from reports import HOSTILE
from tars import image_bytes, write_tar

from beam_curate import synthetic
from beam_curate.__main__ import main

CHROMIUM, DRIVER = "chromium", "chromedriver"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Dataset:
    """112 made-up pictures through the demo model, with a report."""
    directory = tmp_path_factory.mktemp("pictures")
    synthetic.write_tars(directory / "in", 2, 60)
    arguments = [f"--input={directory}/in", f"--output_dir={directory}/out", "--clip_model=demo"]
    arguments += ["--inference_batch_size=32", "--images_per_tar=10", "--aesthetic_threshold=5"]
    assert main(arguments) == 0
    return Dataset(directory / "out")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> Dataset:
    """Captions, keys and paths that look like markup; one image rejected by its score, one undecodable."""
    directory = tmp_path_factory.mktemp("hostile") / "<b> & 'quotes' \"x\""
    members = []
    for number, text in enumerate(HOSTILE):
        key = text.replace("/", "_").replace(".", "_").replace("\0", "_")
        members += [(f"{number}{key}.jpg", image_bytes(number)), (f"{number}{key}.txt", text.encode())]
    members.append(("<script>window.hacked = 7<_script>.jpg", b"<script>window.hacked = 8</script>"))
    write_tar(directory / "in" / "<script>window.hacked = 9<_script>.tar", members)
    common = [f"--input={directory}/in", "--clip_model=demo", "--inference_batch_size=8", "--nsfw_threshold=100"]
    assert main([*common, f"--output_dir={directory}/all", "--aesthetic_threshold=-100", "--noreport"]) == 0
    second = sorted(row["aesthetic_score"] for row in Dataset(directory / "all").rows)[1]
    assert main([*common, f"--output_dir={directory}/out", f"--aesthetic_threshold={second!r}"]) == 0
    return Dataset(directory / "out")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> tuple[str, str]:
    """Debian's browser and its driver, installed where they are missing and may be."""
    missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium", "chromium-driver"]):
            subprocess.run(["apt-get", "--quiet", *arguments], check=True)
        missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} missing; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (required in CI)")
        pytest.skip(reason)
    return shutil.which(CHROMIUM), shutil.which(DRIVER)


@pytest.fixture(scope="session")
def driver(chromium, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium[0]
    for flag in (
        "--headless=new",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromium[1]))
    yield browser
    browser.quit()

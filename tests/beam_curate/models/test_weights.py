"""Weights files: what is read, what is refused, and what the cache holds."""

from __future__ import annotations

import http.server
import os
import threading
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from beam_curate.errors import CurateError
from beam_curate.models import weights

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEAM_CURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """An HTTP server of ``tmp_path/www``; its address and the paths that were asked for."""
    (tmp_path / "www").mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "www")

        def log_message(self, format, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def equal(found):
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_every_file_format_gives_the_same_tensors_and_digest(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pth")
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.pth", "folder/a.pth")
    digests = set()
    for name in ("a.safetensors", "a.pth", "b.pt", "a.zip"):
        tensors = weights.read_tensors(str(tmp_path / name))
        assert equal(tensors)
        digests.add(weights.tensors_sha256(tensors))
    assert len(digests) == 1


class _Attack:
    def __reduce__(self):
        return os.mkdir, ("/tmp/beam-curate-was-attacked",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"weight": _Attack()}, tmp_path / "evil.pth")
    with pytest.raises(CurateError, match=r"cannot read weights from .*evil\.pth: it holds more than tensors"):
        weights.read_tensors(str(tmp_path / "evil.pth"))
    assert not os.path.exists("/tmp/beam-curate-was-attacked")


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{", b"PK\x03\x04" + bytes(100)])
def test_garbage_is_refused_by_name(tmp_path, data):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CurateError, match=name):
            weights.read_tensors(str(tmp_path / name))


def test_a_download_is_checked_and_cached(tmp_path, cache, server):
    address, asked = server
    torch.save(TENSORS, tmp_path / "www" / "head.pth")
    sha256 = weights.tensors_sha256(TENSORS)
    path = weights.fetch(f"{address}/head.pth", sha256, "--nsfw_head")
    assert equal(load_file(path))
    assert weights.fetch(f"{address}/head.pth", sha256, "--nsfw_head") == path
    assert asked == ["/head.pth"]
    assert os.listdir(cache) == [f"{sha256}.safetensors"]


def test_a_damaged_cache_is_not_used(tmp_path, cache, server):
    address, asked = server
    torch.save(TENSORS, tmp_path / "www" / "head.pth")
    sha256 = weights.tensors_sha256(TENSORS)
    path = weights.fetch(f"{address}/head.pth", sha256, "--nsfw_head")
    with open(path, "r+b") as file:
        file.write(b"damage")
    assert equal(load_file(weights.fetch(f"{address}/head.pth", sha256, "--nsfw_head")))
    assert len(asked) == 2


def test_a_download_with_other_weights_is_refused_and_not_cached(tmp_path, cache, server):
    torch.save({"weight": torch.ones(1)}, tmp_path / "www" / "head.pth")
    with pytest.raises(CurateError, match="has changed"):
        weights.fetch(f"{server[0]}/head.pth", weights.tensors_sha256(TENSORS), "--nsfw_head")
    assert not cache.exists()


def test_without_network_the_error_names_the_url_and_the_flag(cache):
    with pytest.raises(CurateError, match=r"cannot download http://127\.0\.0\.1:9/head\.pth .*; --nsfw_head takes"):
        weights.fetch("http://127.0.0.1:9/head.pth", "0" * 64, "--nsfw_head")

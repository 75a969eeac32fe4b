"""Weights files: found, fetched into the cache, checked, and read without running anything in them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator

import torch
from apache_beam.io.filesystems import FileSystems
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file as load_safetensors_file
from safetensors.torch import save as save_safetensors

from beam_curate.errors import CurateError
from beam_curate.formats import files

Tensors = dict[str, torch.Tensor]


def local_copy(location: str) -> str:
    """A local path for a file on any Beam file system; a remote one is copied into the cache, once for each version.

    Raises:
      CurateError: there is no such file.
    """
    if FileSystems.get_scheme(location) is None:
        if not os.path.isfile(location):
            raise CurateError(f"there is no file {location}")
        return location
    found = files.find(location)
    if not found:
        raise CurateError(f"there is no file {location}")
    version = f"{location} {found[0].size_in_bytes} {found[0].last_updated_in_seconds}"
    name = f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{os.path.basename(location)}"
    target = os.path.join(files.cache_dir(), name)
    if not os.path.exists(target):
        with files.open_read(location) as source, publish_locally(target) as file:
            while chunk := source.read(1 << 20):
                file.write(chunk)
    return target


@contextlib.contextmanager
def publish_locally(path: str) -> Iterator[io.BufferedWriter]:
    """A local file that appears whole or not at all, also when several processes write it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".download-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_tensors(path: str) -> Tensors:
    """The tensors of a safetensors file, a PyTorch state dict, or a zip archive that holds one such file.

    No code in a file is run: PyTorch files are read with ``weights_only=True``.

    Raises:
      CurateError: the file is none of these, or holds more than tensors.
    """
    try:
        if path.endswith(".safetensors"):
            return load_safetensors_file(path)
        with open(path, "rb") as file:
            return _read_pytorch(_unzipped(file.read(), path), path)
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise CurateError(f"cannot read weights from {path}: {error}") from error


def _unzipped(data: bytes, path: str) -> bytes:
    # A PyTorch file is itself a zip archive, with a data.pkl in it.
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
        if any(name.endswith("/data.pkl") for name in names):
            return data
        weights = [name for name in names if name.endswith((".pth", ".pt", ".bin", ".safetensors"))]
        if len(weights) != 1:
            raise CurateError(f"{path} holds {len(weights)} weights files instead of one")
        return archive.read(weights[0])


def _read_pytorch(data: bytes, path: str) -> Tensors:
    if data[8:9] == b"{":
        return load_safetensors(data)
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # PyTorch's own text recommends to turn the protection off.
        reason = (
            "it holds more than tensors, or is no weights file" if isinstance(error, pickle.UnpicklingError) else error
        )
        raise CurateError(f"cannot read weights from {path}: {reason}") from error
    state = value.get("state_dict", value) if isinstance(value, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CurateError(f"{path} holds no state dict")
    return {str(name): tensor for name, tensor in state.items()}


def tensors_sha256(tensors: Tensors) -> str:
    """Hex SHA-256 of tensors as a safetensors file without metadata: the same whatever file they came in."""
    return hashlib.sha256(_serialized(tensors)).hexdigest()


def _serialized(tensors: Tensors) -> bytes:
    return save_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()})


def fetch(url: str, sha256: str, flag: str) -> str:
    """The cached safetensors file with the tensors published at ``url``, downloaded if need be.

    Args:
      url: of a safetensors file, a PyTorch state dict or a zip archive with one.
      sha256: what ``tensors_sha256`` must say of it; also the name in the cache.
      flag: the flag that takes a local file instead, for the error message.

    Raises:
      CurateError: it cannot be downloaded, or is not what it should be.
    """
    path = os.path.join(files.cache_dir(), f"{sha256}.safetensors")
    if os.path.exists(path):
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() == sha256:
                return path
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise CurateError(f"cannot download {url} ({error}); {flag} takes the path of a local file instead") from error
    tensors = _read_pytorch(_unzipped(data, url), url)
    found = tensors_sha256(tensors)
    if found != sha256:
        raise CurateError(f"{url} has changed: SHA-256 of its tensors is {found}, not {sha256}")
    with publish_locally(path) as target:
        target.write(_serialized(tensors))
    return path

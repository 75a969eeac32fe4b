"""The CLIP image tower as a Beam ``ModelHandler``: samples in, embedded image records out."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from apache_beam.ml.inference.base import ModelHandler
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image

from beam_curate import metrics
from beam_curate.errors import CurateError, UsageError
from beam_curate.formats.store import Encoder
from beam_curate.models import weights
from beam_curate.models.preprocess import (
    Header,
    ImageError,
    Pixels,
    Preprocess,
    Preprocessor,
    has_dali,
    make_preprocessor,
    read_header,
)
from beam_curate.records import MODEL_ERROR, ImageRecord, Rejection, Sample, TarEntry

DEMO = "demo"
_DEMO_DIR = Path(__file__).parent / "demo"
_HF_HUB = "hf-hub:"
STAGE = "embed"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Which weights an encoder has: open_clip's configurations, and where the file is.

    ``source`` is ``demo``, a tag, an ``hf-hub:`` name, or the path or URI of a file; ``config`` and ``preprocess`` are
    open_clip's ``model_cfg`` and ``preprocess_cfg``.
    """

    clip_model: str
    source: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def is_file(self) -> bool:
        """Whether the weights come from a file of the user's, of which no one knows what it was trained on."""
        return self.source != DEMO and not self.source.startswith(_HF_HUB) and not _is_tag(self.clip_model, self.source)

    @property
    def embedding_size(self) -> int:
        return int(self.config["embed_dim"])

    def locate(self) -> str:
        """A local path of the weights, downloaded if need be.

        Raises:
          CurateError: they cannot be had.
        """
        try:
            if self.source == DEMO:
                return str(_DEMO_DIR / "clip.safetensors")
            if self.source.startswith(_HF_HUB):
                return str(download_pretrained_from_hf(self.source.removeprefix(_HF_HUB)))
            if _is_tag(self.clip_model, self.source):
                return str(open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.clip_model, self.source)))
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CurateError(
                f"cannot download the weights {self.source} of {self.clip_model} ({reason}); "
                "--clip_pretrained takes the path of a local checkpoint file instead"
            ) from error
        return weights.local_copy(self.source)


def _is_tag(clip_model: str, name: str) -> bool:
    return bool(open_clip.get_pretrained_cfg(clip_model, name))


def find_checkpoint(clip_model: str, clip_pretrained: str) -> Checkpoint:
    """Resolves ``--clip_model`` and ``--clip_pretrained``, without reading the weights.

    Where a tag's weights were trained with QuickGELU, as OpenAI's were, the tower uses it, whether or not the model's
    name says so: ``ViT-L-14`` with ``openai`` is open_clip's ``ViT-L-14-quickgelu`` with ``openai``.

    Raises:
      UsageError: there is no such model, or no such weights.
    """
    if clip_model == DEMO:
        document = json.loads((_DEMO_DIR / "open_clip_config.json").read_text())
        return Checkpoint(
            DEMO, DEMO, document["model_cfg"], _preprocess_cfg(document["model_cfg"], document["preprocess_cfg"])
        )
    if clip_model.startswith(_HF_HUB):
        document = _hub_config(clip_model, "--clip_model")
        return Checkpoint(
            clip_model,
            clip_model,
            document["model_cfg"],
            _preprocess_cfg(document["model_cfg"], document.get("preprocess_cfg", {})),
        )
    config = open_clip.get_model_config(clip_model)
    if config is None:
        close = difflib.get_close_matches(clip_model, open_clip.list_models(), 3)
        raise UsageError(
            f"--clip_model: open_clip has no model {clip_model!r}; "
            + (f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models() names all")
        )
    if clip_pretrained.startswith(_HF_HUB):
        document = _hub_config(clip_pretrained, "--clip_pretrained")
        return Checkpoint(
            clip_model, clip_pretrained, config, _preprocess_cfg(config, document.get("preprocess_cfg", {}))
        )
    tag = open_clip.get_pretrained_cfg(clip_model, clip_pretrained)
    if tag:
        config["quick_gelu"] = bool(tag.get("quick_gelu", False)) or config.get("quick_gelu", False)
        return Checkpoint(clip_model, clip_pretrained, config, _preprocess_cfg(config, tag))
    # Only a path can be meant. Whether the file is there is seen when it is read: a run that finds all embeddings in
    # the store does not need it.
    if not _looks_like_path(clip_pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(clip_model))
        raise UsageError(f"--clip_pretrained: {clip_pretrained!r} is neither a file nor a tag of {clip_model} ({tags})")
    return Checkpoint(clip_model, clip_pretrained, config, _preprocess_cfg(config, {}))


def _looks_like_path(name: str) -> bool:
    return os.path.exists(name) or "/" in name or name.endswith((".safetensors", ".pt", ".pth", ".bin"))


def _hub_config(name: str, flag: str) -> dict[str, Any]:
    try:
        path = download_pretrained_from_hf(name.removeprefix(_HF_HUB), filename="open_clip_config.json")
        with open(path, encoding="utf-8") as file:
            document: dict[str, Any] = json.load(file)
            return document
    except (OSError, ValueError) as error:
        raise CurateError(f"{flag}: cannot get the configuration of {name}: {str(error).splitlines()[0]}") from error


def _preprocess_cfg(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    cfg = merge_preprocess_dict(PreprocessCfg(), dict(overlay))
    return dict(cfg, size=config["vision_cfg"].get("image_size", cfg["size"]))


def build_tower(checkpoint: Checkpoint, tensors: weights.Tensors | None, dtype: torch.dtype) -> torch.nn.Module:
    """The image tower alone, with its weights; the text tower is never built to size.

    Args:
      checkpoint: which model it is.
      tensors: a state dict of the whole model in any format that open_clip reads; None leaves the random start values.
      dtype: of the weights and of the input; layer norms are computed in float32.

    Raises:
      CurateError: the tensors are not those of this model.
    """
    config = dict(checkpoint.config)
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg={**config["vision_cfg"], "timm_model_pretrained": False},
            text_cfg=text,
            quick_gelu=config.get("quick_gelu", False),
            cast_dtype=None if dtype == torch.float32 else dtype,
        )
    if tensors is not None:
        state = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        state = convert_state_dict(model, state)
        if "positional_embedding" in state:
            state = convert_to_custom_text_state_dict(state)
        resize_pos_embed(state, model)
        visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
        try:
            model.visual.load_state_dict(visual, strict=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise CurateError(
                f"--clip_pretrained: {checkpoint.source} is not a checkpoint of {checkpoint.clip_model}: {reason[:300]}"
            ) from error
    tower = model.visual.eval().requires_grad_(False)
    if dtype == torch.float32:
        return tower.float()
    if config["vision_cfg"].get("timm_model_name"):
        return tower.to(dtype)
    open_clip.convert_weights_to_lp(tower, dtype)
    return tower


class ClipModel:
    """A loaded image tower, shared by all threads of a process. The weights are read when the first image comes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights_sha256: str | None,
        device: str,
        precision: str,
        decoder: str,
        batch_size: int,
    ):
        self._checkpoint = checkpoint
        self._weights_sha256 = weights_sha256
        self._device = torch.device(device)
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        self._decoder = decoder
        self.preprocess = Preprocess.from_open_clip(checkpoint.preprocess)
        self.batch_size = batch_size
        self._rows = batch_size  # in one forward pass
        self._lock = threading.Lock()
        self._tower: torch.nn.Module | None = None
        self._threads = threading.local()

    @property
    def preprocessor(self) -> Preprocessor:
        """This thread's own."""
        if not hasattr(self._threads, "preprocessor"):
            self._threads.preprocessor = make_preprocessor(
                self.preprocess, self._decoder, self.batch_size, self._device.type
            )
        preprocessor: Preprocessor = self._threads.preprocessor
        return preprocessor

    @torch.inference_mode()
    def embed(self, pixels: Pixels) -> npt.NDArray[np.float16]:
        """Embeddings, float16 ``[n, d]`` with L2 norm 1, of pixels, uint8 ``[n, height, width, 3]``.

        A batch that does not fit into memory is halved, now and from then on.

        Raises:
          CurateError: not even one image fits.
        """
        tower = self._load()
        while True:
            rows = self._rows
            try:
                parts = [self._forward(tower, part) for part in _parts(pixels, rows)]
                return np.concatenate(parts)[: len(pixels)]
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise CurateError(
                        f"not enough memory on {self._device} to embed even one image; choose a smaller --clip_model: "
                        f"{error}"
                    ) from error
                self._rows = min(self._rows, (rows + 1) // 2)
            _logger.warning(
                "out of memory on %s; from now on %d images are embedded at a time (--inference_batch_size)",
                self._device,
                self._rows,
            )
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, tower: torch.nn.Module, pixels: Pixels) -> npt.NDArray[np.float16]:
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float().div_(255)
        features = tower(((images - self._mean) / self._std).to(self._dtype))
        if isinstance(features, tuple):  # CoCa's tower gives its tokens too
            features = features[0]
        normalized: npt.NDArray[np.float16] = (
            torch.nn.functional.normalize(features.float(), dim=-1).half().cpu().numpy()
        )
        return normalized

    def _load(self) -> torch.nn.Module:
        with self._lock:
            if self._tower is None:
                path = self._checkpoint.locate()
                if self._weights_sha256 is not None and _file_sha256(path) != self._weights_sha256:
                    raise CurateError(f"{self._checkpoint.source} has changed since the run was started")
                if self._device.type == "cuda" and not torch.cuda.is_available():
                    raise CurateError(
                        "--device: there are images to embed, and no CUDA device was found; "
                        "install the GPU's driver, or give --device=cpu"
                    )
                tower = build_tower(self._checkpoint, weights.read_tensors(path), self._dtype).to(self._device)
                self._mean = torch.tensor(self.preprocess.mean, device=self._device).view(1, 3, 1, 1)
                self._std = torch.tensor(self.preprocess.std, device=self._device).view(1, 3, 1, 1)
                self._tower = tower
                metrics.count(metrics.MODEL_LOADS)
            return self._tower


def _parts(pixels: Pixels, rows: int) -> Iterator[Pixels]:
    """Parts of exactly ``rows`` images, the last one padded: a forward pass always has one shape."""
    for start in range(0, len(pixels), rows):
        part = pixels[start : start + rows]
        missing = rows - len(part)
        yield part if not missing else np.concatenate([part, np.zeros((missing, *part.shape[1:]), np.uint8)])


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU, PyTorch raises a plain RuntimeError.
    return not isinstance(error, RuntimeError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


@functools.lru_cache(maxsize=8)
def _hash_once(path: str, size: int, modified: float) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _file_sha256(path: str) -> str:
    stat = os.stat(path)
    return _hash_once(path, stat.st_size, stat.st_mtime)


class ClipModelHandler(ModelHandler[TarEntry, TarEntry, ClipModel]):
    """Embeds samples for ``RunInference``: each ``Sample`` becomes an ``ImageRecord`` or a ``Rejection``; others pass.

    Micro-batches have one fixed shape: ``batch_size`` elements, and pixels padded to as many images, so that an
    embedding does not depend on its neighbours. Calls may come from several threads at once.

    Args:
      clip_model: any open_clip model, or ``demo``.
      clip_pretrained: a tag, an ``hf-hub:`` name, or the path or URI of a checkpoint file.
      device: ``cpu``, ``cuda``, or ``auto`` for ``cuda`` where there is one.
      precision: ``fp32``, ``fp16``, or ``auto`` for ``fp16`` on ``cuda``.
      batch_size: images in a micro-batch.
      max_image_pixels: larger images are rejected before they are decoded.
      decoder: ``dali``, ``pillow``, or ``auto`` for ``dali`` where it is installed.

    Raises:
      UsageError: there is no such model, device or precision.
    """

    def __init__(
        self,
        clip_model: str = "ViT-L-14",
        clip_pretrained: str = "openai",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 256,
        max_image_pixels: int = 100_000_000,
        decoder: str = "auto",
    ):
        super().__init__()
        self.checkpoint = find_checkpoint(clip_model, clip_pretrained)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "fp16" if device == "cuda" else "fp32"
        if device not in ("cpu", "cuda"):
            raise UsageError(f"--device: {device!r} is not auto, cpu or cuda")
        if precision not in ("fp32", "fp16"):
            raise UsageError(f"--precision: {precision!r} is not auto, fp32 or fp16")
        if precision == "fp16" and device == "cpu":
            raise UsageError("--precision=fp16 needs --device=cuda")
        if batch_size < 1:
            raise UsageError(f"--inference_batch_size: {batch_size} is not a positive number")
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.max_image_pixels = max_image_pixels
        self.decoder = ("dali" if has_dali() else "pillow") if decoder == "auto" else decoder
        self.weights_sha256: str | None = None

    def encoder(self) -> Encoder:
        """What the embeddings will depend on. Reads the weights once to hash them; loading then insists on the same.

        Raises:
          CurateError: the weights cannot be had.
        """
        self.weights_sha256 = _file_sha256(self.checkpoint.locate())
        return Encoder(
            self.checkpoint.clip_model,
            self.checkpoint.source,
            self.weights_sha256,
            self.precision,
            self.device,
            self.decoder,
            self._preprocess_json(),
            self.checkpoint.embedding_size,
            self.max_image_pixels,
        )

    def stands_for(self, encoder: Encoder, free: bool) -> bool:
        """Whether embeddings of an encoder are what this handler was asked for, as far as can be said without weights.

        Args:
          encoder: of a store.
          free: device and precision were left to ``auto``, so that the encoder's own will do.
        """
        if self.weights_sha256 not in (None, encoder.weights_sha256):
            return False
        asked = (self.checkpoint.clip_model, self.checkpoint.source, self._preprocess_json(), self.max_image_pixels)
        has = (encoder.clip_model, encoder.clip_pretrained, encoder.preprocess, encoder.max_image_pixels)
        same_machine = (self.device, self.precision) == (encoder.device, encoder.precision)
        return asked == has and (free or same_machine)

    def adopt(self, encoder: Encoder) -> None:
        """Embeds as an encoder of a store does from now on, and insists on its weights."""
        self.device, self.precision, self.decoder = encoder.device, encoder.precision, encoder.decoder
        self.weights_sha256 = encoder.weights_sha256

    def _preprocess_json(self) -> str:
        return json.dumps(asdict(Preprocess.from_open_clip(self.checkpoint.preprocess)), sort_keys=True)

    def load_model(self) -> ClipModel:
        # Pillow refuses what it takes for a bomb; the limit that counts is --max_image_pixels.
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, self.max_image_pixels)
        return ClipModel(
            self.checkpoint, self.weights_sha256, self.device, self.precision, self.decoder, self.batch_size
        )

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": self.batch_size, "max_batch_size": self.batch_size}

    def get_num_bytes(self, batch: Sequence[TarEntry]) -> int:
        return sum(len(entry.image) for entry in batch if isinstance(entry, Sample))

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def run_inference(
        self, batch: Sequence[TarEntry], model: ClipModel, inference_args: dict[str, Any] | None = None
    ) -> list[TarEntry]:
        results: list[TarEntry] = list(batch)
        samples: list[tuple[int, Sample]] = []
        images: list[tuple[bytes, Header]] = []
        for i, entry in enumerate(batch):
            if isinstance(entry, Sample):
                try:
                    images.append((entry.image, read_header(entry.image, self.max_image_pixels)))
                    samples.append((i, entry))
                except ImageError as error:
                    results[i] = _rejection(entry, error)
        if not images:
            return results
        pixels = np.zeros((self.batch_size, *model.preprocess.size, 3), np.uint8)
        errors = model.preprocessor(images, pixels)
        if all(errors):
            embeddings = np.zeros((len(images), self.checkpoint.embedding_size), np.float16)
        else:
            embeddings = model.embed(pixels)
        embedded = 0
        for row, (i, sample) in enumerate(samples):
            header, fault = images[row][1], errors[row]
            if fault is None and not np.isfinite(embeddings[row]).all():
                fault = ImageError(MODEL_ERROR, "the embedding is not finite")
            if fault is not None:
                results[i] = _rejection(sample, ImageError(fault.reason, fault.detail, header))
            else:
                embedded += 1
                results[i] = _record(sample, header, embeddings[row])
        metrics.count(metrics.IMAGES_EMBEDDED, embedded)
        _logger.debug("embedded %d images", embedded)
        return results


def _record(sample: Sample, header: Header, embedding: npt.NDArray[np.float16]) -> ImageRecord:
    return ImageRecord(
        sample.source,
        sample.index,
        sample.key,
        sample.image_id,
        sample.member,
        sample.offset,
        sample.size,
        sample.digest,
        hashlib.sha256(sample.image).digest(),
        header.width,
        header.height,
        header.format,
        embedding.astype("<f2").tobytes(),
    )


def _rejection(sample: Sample, error: ImageError) -> Rejection:
    header = error.header
    return Rejection(
        sample.source,
        sample.index,
        sample.key,
        STAGE,
        error.reason,
        f"{sample.member}: {error.detail}"[:1000],
        header.width if header else None,
        header.height if header else None,
        hashlib.sha256(sample.image).digest(),
    )

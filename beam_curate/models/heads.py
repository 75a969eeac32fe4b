"""Score heads: small models that turn a CLIP embedding into one number, and the registry of the public ones.

Scores are computed in float32 on the CPU from the float16 embedding, so that anyone can compute them again from the
Parquet column.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from beam_curate.errors import CurateError, UsageError
from beam_curate.models import weights

AESTHETIC = "aesthetic"
NSFW = "nsfw"
# Rows in one matrix product. Always the same, so that a score does not depend on how many images came with it.
_ROWS = 256


@dataclass(frozen=True)
class PublicHead:
    """A published head.

    ``sha256`` is that of its tensors (``weights.tensors_sha256``), which does not depend on the file format they are
    published in. ``clip_model`` and ``clip_pretrained`` are open_clip's names of the encoder it was trained on; an
    encoder with ``-quickgelu`` in its name is the same one.
    """

    name: str
    kind: str
    url: str
    sha256: str
    clip_model: str
    clip_pretrained: str
    embedding_size: int

    def fits(self, clip_model: str, clip_pretrained: str, pretrained_is_file: bool) -> bool:
        """A checkpoint file does not say what it was trained on: only its architecture can be compared."""
        same_model = clip_model.removesuffix("-quickgelu") == self.clip_model
        return same_model and (pretrained_is_file or clip_pretrained == self.clip_pretrained)


_LAION = "https://github.com/LAION-AI"
_DEMO = Path(__file__).parent / "demo"

# In order of preference: `auto` takes the first that fits.
PUBLIC_HEADS = (
    PublicHead(
        "aesthetic_v2_vit_l_14",
        AESTHETIC,
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "69d9f732fe8a054622d470f13c29e629267211eef91d18056c48db0120d388ea",
        "ViT-L-14",
        "openai",
        768,
    ),
    PublicHead(
        "aesthetic_v1_vit_l_14",
        AESTHETIC,
        f"{_LAION}/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        "fb247dd28e4f3731e62baeb049dc8ed587dd2f98f5b7f85f0db4ef611ff5ec34",
        "ViT-L-14",
        "openai",
        768,
    ),
    PublicHead(
        "aesthetic_v1_vit_b_32",
        AESTHETIC,
        f"{_LAION}/aesthetic-predictor/raw/main/sa_0_4_vit_b_32_linear.pth",
        "61f78d14fb6c4a9cdfcc7183bd374dcfa43002f82b68f5d0cf8ddf2ec5ad6a06",
        "ViT-B-32",
        "openai",
        512,
    ),
    PublicHead(
        "nsfw_vit_l_14",
        NSFW,
        f"{_LAION}/CLIP-based-NSFW-Detector/files/10250461/clip_autokeras_binary_nsfw.zip",
        "fbd76a2d058e0eac292492b2271e469728e7c80e2f70e21d17a87552abd9e625",
        "ViT-L-14",
        "openai",
        768,
    ),
    PublicHead(
        "nsfw_vit_b_32",
        NSFW,
        f"{_LAION}/CLIP-based-NSFW-Detector/raw/main/models/clip_ViT-B-32_openai_binary_nsfw_head.pth",
        "c9907793c39371b560bc85ad55407ac945e11f3b94b88dba8b6c5a771c64b16c",
        "ViT-B-32",
        "openai",
        512,
    ),
)


@dataclass(frozen=True)
class HeadSpec:
    """A head that was found to fit: what a worker needs to load it.

    ``location`` is a path or URI of a file, or the URL of a public head; ``flag`` is the one that chose it.
    """

    name: str
    location: str
    sha256: str
    embedding_size: int
    flag: str

    def load(self) -> ScoreHead:
        if self.location.startswith(("http://", "https://")):
            tensors = weights.read_tensors(weights.fetch(self.location, self.sha256, self.flag))
        else:
            tensors = weights.read_tensors(weights.local_copy(self.location))
        if weights.tensors_sha256(tensors) != self.sha256:
            raise CurateError(f"{self.flag}: {self.location} has changed since the run was started")
        return ScoreHead(tensors, self.location)


class ScoreHead:
    """One of the three published architectures, known by the names of its tensors.

    * ``weight``, ``bias``: one linear layer (LAION aesthetic v1);
    * ``layers.N.weight``, ``layers.N.bias``: linear layers without activations (aesthetic v2, its dropouts left out);
    * ``norm.mean``, ``norm.variance``, ``linear_N.weight``, ``linear_N.bias``: standardisation, linear layers with ReLU
      between them and a sigmoid at the end (LAION's NSFW detector).

    Raises:
      CurateError: the tensors are none of these.
    """

    def __init__(self, tensors: weights.Tensors, source: str):
        self._mean: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None
        self._activation: Callable[[torch.Tensor], torch.Tensor] | None = None
        names = set(tensors)
        layers = sorted(
            {int(match[1]) for name in names if (match := re.fullmatch(r"(?:layers\.|linear_)(\d+)\.weight", name))}
        )
        if names == {"weight", "bias"}:
            prefixes = [""]
        elif names == {f"layers.{n}.{part}" for n in layers for part in ("weight", "bias")} and layers:
            prefixes = [f"layers.{n}." for n in layers]
        elif (
            names
            == {"norm.mean", "norm.variance"} | {f"linear_{n}.{part}" for n in layers for part in ("weight", "bias")}
            and layers
        ):
            prefixes = [f"linear_{n}." for n in layers]
            self._mean = tensors["norm.mean"].float()
            self._scale = tensors["norm.variance"].float().sqrt()
            self._activation = torch.relu
        else:
            raise CurateError(
                f"{source} is not a score head of a known architecture: its tensors are {sorted(names)[:8]}"
            )
        self._layers = [(tensors[f"{prefix}weight"].float(), tensors[f"{prefix}bias"].float()) for prefix in prefixes]
        sizes = [tuple(weight.shape) for weight, _ in self._layers]
        chained = all(len(size) == 2 for size in sizes) and all(a[0] == b[1] for a, b in itertools.pairwise(sizes))
        if not chained or sizes[-1][0] != 1 or any(bias.shape != weight.shape[:1] for weight, bias in self._layers):
            raise CurateError(f"{source} is not a score head: its layers have shapes {sizes}")
        self.embedding_size = int(sizes[0][1])
        if (
            self._mean is not None
            and self._scale is not None
            and not (self._mean.shape == self._scale.shape == (self.embedding_size,))
        ):
            raise CurateError(f"{source} is not a score head: its norm has shape {tuple(self._mean.shape)}")

    @torch.inference_mode()
    def __call__(self, embeddings: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
        """Scores, float32 ``[n]``, of embeddings, float16 ``[n, d]`` with L2 norm 1."""
        scores = np.empty(len(embeddings), np.float32)
        for start in range(0, len(embeddings), _ROWS):
            rows = embeddings[start : start + _ROWS]
            batch = np.zeros((_ROWS, self.embedding_size), np.float32)
            batch[: len(rows)] = rows
            scores[start : start + len(rows)] = self._forward(torch.from_numpy(batch))[: len(rows), 0].numpy()
        return scores

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._mean is not None and self._scale is not None:
            x = (x - self._mean) / self._scale
        for n, (weight, bias) in enumerate(self._layers):
            x = torch.nn.functional.linear(x, weight, bias)
            if self._activation is not None and n < len(self._layers) - 1:
                x = self._activation(x)
        return torch.sigmoid(x) if self._activation is not None else x


def find_head(
    kind: str, choice: str, clip_model: str, clip_pretrained: str, pretrained_is_file: bool, embedding_size: int
) -> HeadSpec | None:
    """Resolves ``--aesthetic_head`` or ``--nsfw_head`` for an encoder.

    Args:
      kind: ``aesthetic`` or ``nsfw``.
      choice: ``auto``, ``none``, the name of a public head, or the path or URI of a weights file.
      clip_model, clip_pretrained, pretrained_is_file, embedding_size: the encoder.

    Raises:
      UsageError: the head was trained on another encoder, or there is none; says which would fit.
    """
    flag = f"--{kind}_head"
    if choice == "none":
        return None
    encoder = f"{clip_model}/{clip_pretrained}"
    if clip_model == "demo" and choice == "auto":
        choice = str(_DEMO / f"{kind}.safetensors")
    public = [head for head in PUBLIC_HEADS if head.kind == kind]
    fitting = [head for head in public if head.fits(clip_model, clip_pretrained, pretrained_is_file)]
    advice = (
        f"fitting {kind} heads: {', '.join(head.name for head in fitting) or 'none known'}; or a weights file, or none"
    )
    if choice == "auto":
        if not fitting:
            known = sorted({f"{head.clip_model}/{head.clip_pretrained}" for head in public})
            raise UsageError(
                f"{flag}=auto: no {kind} head is known for {encoder}, only for {', '.join(known)}; "
                "give a weights file, or none"
            )
        chosen: PublicHead | None = fitting[0]
    else:
        chosen = next((head for head in PUBLIC_HEADS if head.name == choice), None)
    if chosen is None:
        return _head_from_file(choice, kind, flag, encoder, embedding_size, fitting, advice)
    if chosen not in fitting:
        what = (
            f"gives {chosen.kind} scores"
            if chosen.kind != kind
            else f"was trained on {chosen.clip_model}/{chosen.clip_pretrained}, not on {encoder}"
        )
        raise UsageError(f"{flag}: {chosen.name} {what}; {advice}")
    return HeadSpec(chosen.name, chosen.url, chosen.sha256, chosen.embedding_size, flag)


def _head_from_file(
    location: str, kind: str, flag: str, encoder: str, embedding_size: int, fitting: list[PublicHead], advice: str
) -> HeadSpec:
    try:
        tensors = weights.read_tensors(weights.local_copy(location))
        head = ScoreHead(tensors, location)
    except CurateError as error:
        raise UsageError(f"{flag}: {error}; {advice}") from error
    sha256 = weights.tensors_sha256(tensors)
    public = next((known for known in PUBLIC_HEADS if known.sha256 == sha256), None)
    if public is not None and public not in fitting:
        raise UsageError(
            f"{flag}: {location} is {public.name}, a {public.kind} head trained on "
            f"{public.clip_model}/{public.clip_pretrained}; the encoder is {encoder}; {advice}"
        )
    if head.embedding_size != embedding_size:
        raise UsageError(
            f"{flag}: {location} takes embeddings of {head.embedding_size} numbers, "
            f"those of {encoder} have {embedding_size}; {advice}"
        )
    name = public.name if public is not None else location.rpartition("/")[2]
    if encoder == "demo/demo" and Path(location).parent == _DEMO:
        name = "demo"
    return HeadSpec(name, location, sha256, embedding_size, flag)

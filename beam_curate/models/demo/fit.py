"""Makes the demonstration model's files: ``python -m beam_curate.models.demo.fit [DIRECTORY]``.

The tower is trained for a minute to tell the kinds of made-up pictures in ``beam_curate.synthetic`` apart, from
open_clip's random start values. The heads are one linear layer each, the ridge regression in closed form of that
module's targets on the embeddings of such pictures.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from beam_curate import synthetic
from beam_curate.models.clip import ClipModelHandler, build_tower
from beam_curate.models.preprocess import PillowPreprocessor, Preprocess, read_header
from beam_curate.records import ImageRecord, Sample

_PICTURES_PER_KIND = 400
_EPOCHS = 30
_RIDGE = 1e-4


def write_tower(directory: Path, images: list[bytes], kinds: list[str]) -> None:
    handler = ClipModelHandler("demo", device="cpu", decoder="pillow")
    torch.manual_seed(0)
    tower = build_tower(handler.checkpoint, None, torch.float32).requires_grad_(True)
    classify = torch.nn.Linear(handler.checkpoint.embedding_size, len(synthetic.KINDS))
    preprocess = Preprocess.from_open_clip(handler.checkpoint.preprocess)
    pixels = np.empty((len(images), *preprocess.size, 3), np.uint8)
    PillowPreprocessor(preprocess)([(image, read_header(image, 10**8)) for image in images], pixels)
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    labels = torch.tensor([synthetic.KINDS.index(kind) for kind in kinds])
    optimizer = torch.optim.AdamW([*tower.parameters(), *classify.parameters()], lr=1e-3)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(images)).split(50):
            features = torch.nn.functional.normalize(tower(inputs[rows]), dim=-1)
            loss = torch.nn.functional.cross_entropy(classify(features) * 5, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_file({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, directory / "clip.safetensors")


def embed(images: list[bytes]) -> npt.NDArray[np.float16]:
    """Embeddings, float16 ``[n, 64]``, through the handler that the pipeline uses."""
    handler = ClipModelHandler("demo", device="cpu", decoder="pillow", batch_size=100)
    model = handler.load_model()
    rows = []
    for start in range(0, len(images), handler.batch_size):
        batch = [
            Sample("", i, "", "", "", 0, 0, b"", image)
            for i, image in enumerate(images[start : start + handler.batch_size])
        ]
        for record in handler.run_inference(batch, model):
            assert isinstance(record, ImageRecord)
            rows.append(record.vector)
    return np.stack(rows)


def fit(embeddings: npt.NDArray[np.float16], targets: npt.NDArray[np.float64]) -> dict[str, torch.Tensor]:
    """Weight ``[1, d]`` and bias ``[1]`` of the ridge regression."""
    x = embeddings.astype(np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    weight = np.linalg.solve(
        centred.T @ centred / len(x) + _RIDGE * np.eye(x.shape[1]), centred.T @ (targets - targets.mean()) / len(x)
    )
    bias = targets.mean() - mean @ weight
    return {
        "weight": torch.tensor(weight[None], dtype=torch.float32),
        "bias": torch.tensor([bias], dtype=torch.float32),
    }


def main(directory: Path) -> None:
    rng = random.Random(1)
    kinds = [kind for kind in synthetic.KINDS for _ in range(_PICTURES_PER_KIND)]
    images = [synthetic.encoded(synthetic.picture(kind, rng)) for kind in kinds]
    write_tower(directory, images, kinds)
    embeddings = embed(images)
    for name, targets in (("aesthetic", synthetic.AESTHETIC_TARGETS), ("nsfw", synthetic.NSFW_TARGETS)):
        save_file(fit(embeddings, np.array([targets[kind] for kind in kinds])), directory / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

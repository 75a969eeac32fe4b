"""The score heads: the published answers, and heads that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from beam_curate.errors import CurateError, UsageError
from beam_curate.models import weights
from beam_curate.models.heads import PUBLIC_HEADS, ScoreHead, find_head

B32 = ("ViT-B-32", "openai", False, 512)
L14 = ("ViT-L-14", "openai", False, 768)


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "heads" / "golden.json").read_text())


@pytest.mark.parametrize("head", PUBLIC_HEADS, ids=lambda head: head.name)
def test_public_heads_give_the_published_scores(shared, golden, head):
    facts = golden[head.name]
    assert head.sha256 == facts["sha256"]
    path = str(shared / "heads" / facts["file"])
    score = ScoreHead(weights.read_tensors(path), path)
    assert score.embedding_size == head.embedding_size
    for case in facts["cases"]:
        embeddings = np.load(shared / "heads" / case["embeddings"])
        assert np.abs(score(embeddings) - np.array(case["scores"])).max() < 1e-4
        if "keras_scores" in case:
            assert np.abs(score(embeddings) - np.array(case["keras_scores"])).max() < 5e-4


@pytest.mark.parametrize(
    "head", [head for head in PUBLIC_HEADS if head.kind == "aesthetic"], ids=lambda head: head.name
)
def test_aesthetic_heads_rank_laions_rated_embeddings_in_order(shared, golden, head):
    path = str(shared / "heads" / golden[head.name]["file"])
    rated = np.load(
        shared / "heads" / f"laion_ratings_{head.name.removeprefix('aesthetic_v1_').removeprefix('aesthetic_v2_')}.npy"
    )
    scores = ScoreHead(weights.read_tensors(path), path)(rated.astype(np.float16))
    assert list(np.argsort(scores)) == list(range(10))


@pytest.mark.parametrize("name", ["sac+logos+ava1-l14-linearMSE", "clip_autokeras_nsfw_b32"])
def test_a_score_does_not_depend_on_its_batch(shared, name):
    path = str(shared / "heads" / f"{name}.safetensors")
    score = ScoreHead(weights.read_tensors(path), path)
    vectors = np.random.default_rng(0).normal(size=(700, score.embedding_size)).astype(np.float16)
    together = score(vectors)
    assert np.array_equal(together, np.concatenate([score(vectors[i : i + 1]) for i in range(len(vectors))]))
    assert np.array_equal(together[::-1], score(vectors[::-1]))


def test_auto_follows_the_encoder():
    assert find_head("aesthetic", "auto", *L14).name == "aesthetic_v2_vit_l_14"
    assert find_head("aesthetic", "auto", *B32).name == "aesthetic_v1_vit_b_32"
    assert find_head("nsfw", "auto", *L14).name == "nsfw_vit_l_14"
    assert find_head("nsfw", "auto", "ViT-B-32-quickgelu", "openai", False, 512).name == "nsfw_vit_b_32"
    assert find_head("nsfw", "auto", "demo", "demo", False, 64).name == "demo"
    assert find_head("nsfw", "none", *L14) is None


@pytest.mark.parametrize(
    ("kind", "choice", "encoder", "says"),
    [
        (
            "aesthetic",
            "aesthetic_v2_vit_l_14",
            B32,
            "was trained on ViT-L-14/openai, not on ViT-B-32/openai; fitting aesthetic heads: aesthetic_v1_vit_b_32",
        ),
        ("nsfw", "aesthetic_v1_vit_b_32", B32, "gives aesthetic scores; fitting nsfw heads: nsfw_vit_b_32"),
        (
            "aesthetic",
            "aesthetic_v1_vit_b_32",
            ("ViT-B-32", "laion2b_s34b_b79k", False, 512),
            "fitting aesthetic heads: none known",
        ),
        (
            "nsfw",
            "auto",
            ("ViT-B-16", "openai", False, 512),
            "no nsfw head is known for ViT-B-16/openai, only for ViT-B-32/openai, ViT-L-14/openai",
        ),
        ("nsfw", "/nowhere/head.pth", B32, "there is no file /nowhere/head.pth"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(kind, choice, encoder, says):
    with pytest.raises(UsageError) as error:
        find_head(kind, choice, *encoder)
    assert str(error.value).startswith(f"--{kind}_head")
    assert says in str(error.value)


def test_a_public_head_is_known_by_its_weights_whatever_its_file_is_called(shared, tmp_path):
    tensors = load_file(shared / "heads" / "clip_autokeras_nsfw_b32.safetensors")
    torch.save(tensors, tmp_path / "mine.pth")
    assert find_head("nsfw", str(tmp_path / "mine.pth"), *B32).name == "nsfw_vit_b_32"
    with pytest.raises(UsageError, match="is nsfw_vit_b_32"):
        find_head("aesthetic", str(tmp_path / "mine.pth"), *B32)
    with pytest.raises(UsageError, match="trained on ViT-B-32/openai; the encoder is ViT-B-16/openai"):
        find_head("nsfw", str(tmp_path / "mine.pth"), "ViT-B-16", "openai", False, 512)


def test_any_file_of_a_known_architecture_is_taken_if_its_size_fits(tmp_path):
    path = str(tmp_path / "mine.safetensors")
    save_file({"weight": torch.ones(1, 512), "bias": torch.tensor([2.0])}, path)
    spec = find_head("aesthetic", path, "ViT-B-16", "openai", False, 512)
    assert spec.load()(np.eye(512, dtype=np.float16)[:1]).tolist() == [3.0]
    with pytest.raises(UsageError, match="takes embeddings of 512 numbers, those of ViT-L-14/openai have 768"):
        find_head("aesthetic", path, *L14)


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": torch.ones(1, 512)},
        {"weight": torch.ones(2, 512), "bias": torch.ones(2)},
        {"weight": torch.ones(1, 512), "bias": torch.ones(3)},
        {
            "layers.0.weight": torch.ones(4, 512),
            "layers.0.bias": torch.ones(4),
            "layers.1.weight": torch.ones(1, 5),
            "layers.1.bias": torch.ones(1),
        },
        {
            "norm.mean": torch.ones(3),
            "norm.variance": torch.ones(3),
            "linear_1.weight": torch.ones(1, 512),
            "linear_1.bias": torch.ones(1),
        },
    ],
)
def test_other_tensors_are_no_head(tensors):
    with pytest.raises(CurateError, match=r"mine\.pth is not a score head"):
        ScoreHead(tensors, "mine.pth")

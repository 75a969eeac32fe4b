"""The demonstration: it runs, and its model tells sharp pictures from the others."""

from __future__ import annotations

import random

import numpy as np
import pytest

from beam_curate import demo, synthetic
from beam_curate.models.demo import fit
from beam_curate.models.heads import find_head


def test_the_demo_runs_and_keeps_sharp_pictures(tmp_path, capsys):
    import json

    import pyarrow.parquet as pq

    assert demo.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "every file is as the manifest says" in said
    document = json.loads((tmp_path / "output" / "_manifest.json").read_text())
    assert document["images"]["rejected"]["undecodable"] == 20
    kinds = [
        json.loads(text)["kind"]
        for shard in document["shards"]
        for text in pq.read_table(tmp_path / "output" / shard["parquet"])["metadata"].to_pylist()
    ]
    assert kinds.count("sharp") > 0.8 * len(kinds)
    assert kinds.count("sharp") > 50
    assert "tinted" not in kinds


@pytest.fixture(scope="module")
def scores():
    rng = random.Random(99)
    embeddings = {
        kind: fit.embed([synthetic.encoded(synthetic.picture(kind, rng)) for _ in range(50)])
        for kind in synthetic.KINDS
    }
    heads = {kind: find_head(kind, "auto", "demo", "demo", False, 64).load() for kind in ("aesthetic", "nsfw")}
    return {name: {kind: head(vectors) for kind, vectors in embeddings.items()} for name, head in heads.items()}


@pytest.mark.parametrize("worse", ["blurred", "noisy", "flat"])
def test_sharp_pictures_score_above_others(scores, worse):
    sharp, other = scores["aesthetic"]["sharp"], scores["aesthetic"][worse]
    assert np.median(sharp) > np.median(other) + 2
    assert np.mean(sharp[:, None] > other[None, :]) > 0.95


def test_tinted_pictures_stand_in_for_nsfw(scores):
    tinted = scores["nsfw"].pop("tinted")
    assert tinted.min() > 0.5
    assert np.mean(np.concatenate(list(scores["nsfw"].values())) < 0.5) > 0.99


def test_the_shipped_heads_are_the_closed_form_fit_of_the_shipped_tower():
    rng = random.Random(1)
    kinds = [kind for kind in synthetic.KINDS for _ in range(fit._PICTURES_PER_KIND)]
    embeddings = fit.embed([synthetic.encoded(synthetic.picture(kind, rng)) for kind in kinds])
    targets = np.array([synthetic.AESTHETIC_TARGETS[kind] for kind in kinds])
    fitted = fit.fit(embeddings, targets)
    shipped = find_head("aesthetic", "auto", "demo", "demo", False, 64).load()
    again = embeddings[::50].astype(np.float32) @ fitted["weight"].numpy()[0] + fitted["bias"].numpy()
    assert np.abs(again - shipped(embeddings[::50])).max() < 0.01

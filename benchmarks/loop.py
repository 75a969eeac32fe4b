"""The whole job as a plain Python loop, from the same functions: what Beam is compared with. SOURCE OUTPUT"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from beam_curate.models.clip import ClipModelHandler
from beam_curate.models.heads import AESTHETIC, NSFW, find_head
from beam_curate.records import ImageRecord
from transforms.match_tar_shards import match_tars
from transforms.read_tar_shards import read_entries
from transforms.write_shards import Plan, WriteShards, write_shard

IMAGES_PER_TAR = 1000


def main(source: str, output: str) -> None:
    handler = ClipModelHandler("demo")
    handler.encoder()
    model = handler.load_model()
    size = handler.checkpoint.embedding_size
    heads = {f"{kind}_score": find_head(kind, "auto", "demo", "demo", False, size).load() for kind in (AESTHETIC, NSFW)}
    settings = WriteShards(output, IMAGES_PER_TAR, remove_image_data=True).settings
    kept: list[tuple[int, ImageRecord]] = []
    batch = []
    written = rank = 0

    def embed_score_filter() -> None:
        nonlocal rank
        records = [entry for entry in handler.run_inference(batch, model) if isinstance(entry, ImageRecord)]
        batch.clear()
        if not records:
            return
        vectors = np.stack([record.vector for record in records])
        scores = {field: head(vectors).tolist() for field, head in heads.items()}
        for i, record in enumerate(records):
            scored = replace(record, **{field: values[i] for field, values in scores.items()})
            if scored.aesthetic_score >= -100 and scored.nsfw_score < 100:
                kept.append((rank, scored))
                rank += 1

    def write(count: int) -> None:
        nonlocal written
        write_shard(settings, Plan("0" * 12, "0" * 12, 0, False), written, kept[:count])
        del kept[:count]
        written += 1

    for tar in match_tars([source]):
        for entry in read_entries(tar):
            batch.append(entry)
            if len(batch) == handler.batch_size:
                embed_score_filter()
                if len(kept) >= IMAGES_PER_TAR:
                    write(IMAGES_PER_TAR)
    embed_score_filter()
    while kept:
        write(IMAGES_PER_TAR)


if __name__ == "__main__":
    main(*sys.argv[1:])

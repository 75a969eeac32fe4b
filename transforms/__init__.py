"""The public PTransforms, one per file."""

from transforms.embed_images import EmbedImages
from transforms.filter_aesthetic import FilterAesthetic
from transforms.filter_nsfw import FilterNsfw
from transforms.match_tar_shards import MatchTarShards
from transforms.read_tar_shards import ReadTarShards
from transforms.score_embeddings import ScoreEmbeddings
from transforms.write_rejects import WriteRejects
from transforms.write_shards import WriteShards

__all__ = [
    "EmbedImages",
    "FilterAesthetic",
    "FilterNsfw",
    "MatchTarShards",
    "ReadTarShards",
    "ScoreEmbeddings",
    "WriteRejects",
    "WriteShards",
]

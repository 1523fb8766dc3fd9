"""MPNet (Song et al. 2020): BERT without token types, with a bias of relative positions on all scores."""

from __future__ import annotations

from ditto.errors import UnsupportedArchitecture
from ditto.models.architecture import Config
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder, Names, Pooled, dimensions, family

NAMES = Names(
    query="attention.attn.q", key="attention.attn.k", value="attention.attn.v", out="attention.attn.o",
    norm1="attention.LayerNorm", ffn1="intermediate.dense", ffn2="output.dense", norm2="output.LayerNorm",
    relative="encoder.relative_attention_bias",
)  # fmt: skip
FIRST = 2  # positions count from here, whatever the id of padding
BUCKETS, DISTANCE = 32, 128  # transformers computes with these, whatever the configuration says


def sizes(config: Config) -> Dimensions:
    count = config.get("relative_attention_num_buckets", BUCKETS)
    if count != BUCKETS:
        raise UnsupportedArchitecture(f"only {BUCKETS} buckets of relative positions are supported, not {count!r}")
    return dimensions(config, relative_buckets=BUCKETS, relative_distance=DISTANCE)


ENCODER = Encoder(NAMES, sizes, "mpnet.", skipped=FIRST)
CLASSES = family("MPNet", ENCODER, Pooled("classifier.dense", "classifier.out_proj"))

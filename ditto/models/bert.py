"""BERT (Devlin et al. 2018)."""

from __future__ import annotations

from ditto.models.architecture import Config
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder, Names, Pooled, dimensions, family

NAMES = Names(
    query="attention.self.query", key="attention.self.key", value="attention.self.value",
    out="attention.output.dense", norm1="attention.output.LayerNorm",
    ffn1="intermediate.dense", ffn2="output.dense", norm2="output.LayerNorm",
)  # fmt: skip


def sizes(config: Config) -> Dimensions:
    return dimensions(config, token_types=config.get("type_vocab_size", 2))


CLASSES = family("Bert", Encoder(NAMES, sizes, "bert.", inner=("pooler.dense",)), Pooled("pooler.dense", "classifier"))

"""DistilBERT (Sanh et al. 2019): BERT without token types; a classifier with ReLU."""

from __future__ import annotations

from ditto.models.architecture import Config
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder, Names, Pooled, dimensions, family

NAMES = Names(
    query="attention.q_lin", key="attention.k_lin", value="attention.v_lin", out="attention.out_lin",
    norm1="sa_layer_norm", ffn1="ffn.lin1", ffn2="ffn.lin2", norm2="output_layer_norm", layer="transformer.layer.{}.",
)  # fmt: skip
SIZES = {
    "hidden": "dim", "layers": "n_layers", "heads": "n_heads", "inner": "hidden_dim",
    "vocabulary": "vocab_size", "positions": "max_position_embeddings",
}  # fmt: skip
EPSILON = 1e-12  # whatever the configuration says


def sizes(config: Config) -> Dimensions:
    return dimensions(config, names=SIZES, activation="activation", epsilon=EPSILON)


CLASSES = family(
    "DistilBert", Encoder(NAMES, sizes, "distilbert."), Pooled("pre_classifier", "classifier", function="relu")
)

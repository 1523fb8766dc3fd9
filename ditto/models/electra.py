"""ELECTRA (Clark et al. 2020): BERT's blocks on narrower tables and a projection; a classifier with GELU."""

from __future__ import annotations

from dataclasses import replace

from ditto.models import bert
from ditto.models.architecture import Config
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder, Pooled, dimensions, family

NAMES = replace(bert.NAMES, projection="embeddings_project")


def sizes(config: Config) -> Dimensions:
    return dimensions(config, embedding=config["embedding_size"], token_types=config.get("type_vocab_size", 2))


ENCODER = Encoder(NAMES, sizes, "electra.")
CLASSIFIER = Pooled("classifier.dense", "classifier.out_proj", function="gelu")
CLASSES = {"ElectraForPreTraining": ENCODER} | family("Electra", ENCODER, CLASSIFIER)

"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT's blocks and names; positions count from 2."""

from __future__ import annotations

from ditto.errors import UnsupportedArchitecture
from ditto.models.architecture import Config
from ditto.models.bert import NAMES
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder, Pooled, dimensions, family

PADDING = 1  # its id; positions count from the next number


def sizes(config: Config) -> Dimensions:
    padding = config.get("pad_token_id", PADDING)
    if padding != PADDING:
        raise UnsupportedArchitecture(f"only {PADDING} is supported as the id of padding, not {padding!r}")
    return dimensions(config, token_types=config.get("type_vocab_size", 2))


ENCODER = Encoder(NAMES, sizes, "roberta.", skipped=PADDING + 1)
CLASSIFIER = Pooled("classifier.dense", "classifier.out_proj")
CLASSES = family("Roberta", ENCODER, CLASSIFIER) | family("XLMRoberta", ENCODER, CLASSIFIER)

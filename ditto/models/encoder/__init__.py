"""Encoders with a LayerNorm after every sum (BERT and its kin): what is the same for all of them."""

from ditto.models.encoder.config import dimensions, labels
from ditto.models.encoder.encoder import Encoder, family
from ditto.models.encoder.heads import EveryToken, Head, Hidden, Pooled
from ditto.models.encoder.names import Names

__all__ = ["Encoder", "EveryToken", "Head", "Hidden", "Names", "Pooled", "dimensions", "family", "labels"]

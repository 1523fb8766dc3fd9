"""Architectures: checkpoint -> calibrated description and encoded weights -> program."""

from ditto.engine.plan import Plan
from ditto.models.architecture import Answer
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.description import Description, Dimensions, parse
from ditto.models.importer import describe, encode_weights, import_calibrated, import_model
from ditto.models.random import random_batch, random_model
from ditto.models.registry import (
    ARCHITECTURES,
    architecture_of,
    compile_stage,
    decode_outputs,
    encode_inputs,
    generator_of,
)

__all__ = [
    "ARCHITECTURES",
    "Answer",
    "Checkpoint",
    "Description",
    "Dimensions",
    "Plan",
    "architecture_of",
    "compile_stage",
    "decode_outputs",
    "describe",
    "encode_inputs",
    "encode_weights",
    "generator_of",
    "import_calibrated",
    "import_model",
    "load_checkpoint",
    "parse",
    "random_batch",
    "random_model",
]

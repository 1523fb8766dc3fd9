"""Architectures: checkpoint -> calibrated description and encoded weights -> program."""

from __future__ import annotations

from typing import Any

from ditto.models.bert import compile_bert
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.client import decode_outputs, encode_inputs, plain_float
from ditto.models.importer import import_model, random_model
from ditto.program import Program

__all__ = [
    "Checkpoint",
    "compile_model",
    "decode_outputs",
    "encode_inputs",
    "import_model",
    "load_checkpoint",
    "plain_float",
    "random_model",
]


def compile_model(spec: dict[str, Any], batch: int, seq: int) -> Program:
    """Compile a model's public description for one batch shape: every process gets the same program."""
    return compile_bert(spec, batch, seq)

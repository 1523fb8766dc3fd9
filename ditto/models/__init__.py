"""Architectures: checkpoint -> calibrated description and encoded weights -> program."""

from __future__ import annotations

from typing import Any

from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.models.bert import compile_bert
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.client import decode_outputs, encode_inputs, plain_float
from ditto.models.gpt2 import compile_gpt2
from ditto.models.importer import import_model, random_model
from ditto.models.plan import Plan

__all__ = [
    "Checkpoint",
    "Plan",
    "compile_model",
    "compile_stage",
    "decode_outputs",
    "encode_inputs",
    "import_model",
    "load_checkpoint",
    "plain_float",
    "random_model",
]


def compile_model(spec: dict[str, Any], batch: int, seq: int, tokens: int = 1, stage: int = 0) -> Program:
    """Compile a model's public description for one batch shape: every process gets the same program.

    A causal model generates up to `tokens` in as many stages. Raises UsageError for sizes that the model does not take.
    """
    return compile_stage(spec, Plan(batch, seq, tokens), stage)


def compile_stage(spec: dict[str, Any], plan: Plan, stage: int = 0) -> Program:
    """Compile one stage of a job."""
    if spec["architecture"] == "GPT2LMHeadModel":
        return compile_gpt2(spec, plan, stage)
    if plan != Plan(plan.batch, plan.seq) or stage:
        raise UsageError(f"{spec['architecture']} generates no text")
    return compile_bert(spec, plan.batch, plan.seq)

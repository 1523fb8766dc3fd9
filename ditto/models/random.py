"""Shapes with random weights of realistic scale, for benchmarks."""

from __future__ import annotations

import torch

from ditto.errors import UsageError
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Dimensions
from ditto.models.importer import describe, encode_weights, fitted
from ditto.models.registry import architecture_of, generates
from ditto.models.tokenizer import Batch

SHAPES = {  # class, layers, hidden, heads, inner
    "bert-tiny": ("BertModel", 2, 128, 2, 512),
    "bert-base": ("BertModel", 12, 768, 12, 3072),
    "bert-large": ("BertModel", 24, 1024, 16, 4096),
    "gpt2-tiny": ("GPT2LMHeadModel", 2, 128, 2, 512),
    "gpt2": ("GPT2LMHeadModel", 12, 768, 12, 3072),
    "gpt2-medium": ("GPT2LMHeadModel", 24, 1024, 16, 4096),
}
DIMENSIONS = {  # what goes with a class
    "BertModel": {"vocabulary": 30522, "positions": 512, "token_types": 2, "epsilon": 1e-12},
    "GPT2LMHeadModel": {"vocabulary": 50257, "positions": 1024, "epsilon": 1e-5, "activation": "tanh gelu"},
}
LEAST_SCORES, LEAST_GELU = 25.0, 12.0  # as seen on pretrained checkpoints, so that the cost is a real model's


def random_model(
    shape: str, layers: int | None, seq: int, preset: str = "ditto", seed: int = 0
) -> tuple[Description, Tensors, Checkpoint]:
    """A shape with random weights, calibrated on random tokens: (description, encoded weights, checkpoint).

    The weights are no secret, so torch's generator serves. Raises UsageError.
    """
    checkpoint = random_checkpoint(shape, layers, seed)
    longest = checkpoint.dimensions.positions
    if not 1 <= seq <= longest:
        raise UsageError(f"length {seq}: 1 to {longest}")
    found = describe(checkpoint, shape, [random_batch(1, seq, seed)], preset)
    wide = [
        layer.model_copy(
            update={"scores": max(layer.scores, LEAST_SCORES), "activation": max(layer.activation, LEAST_GELU)}
        )
        for layer in found.ranges.layers
    ]
    description = fitted(
        found.model_copy(update={"ranges": found.ranges.model_copy(update={"layers": tuple(wide)}), "functions": ()})
    )
    return description, encode_weights(description, checkpoint.tensors), checkpoint


def random_checkpoint(shape: str, layers: int | None = None, seed: int = 0) -> Checkpoint:
    """The shape's random weights alone. Raises UsageError."""
    if shape not in SHAPES:
        raise UsageError(f"shape {shape!r}: one of {', '.join(SHAPES)}")
    name, count, hidden, heads, inner = SHAPES[shape]
    d = Dimensions(
        **DIMENSIONS[name], layers=layers or count, hidden=hidden, heads=heads, inner=inner, embedding=hidden
    )  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for key, size in architecture_of(name).shapes(d).items():
        if "norm" in key or "ln_" in key:
            tensors[key] = float(key.endswith("weight")) + 0.1 * torch.randn(size, generator=generator)
        else:
            tensors[key] = 0.04 * torch.randn(size, generator=generator)
    return Checkpoint(name, d, tensors)


def random_batch(size: int, seq: int, seed: int = 0) -> Batch:
    """Random token ids, no padding."""
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(1000, 30000, (size, seq), generator=generator)
    return Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))


def is_causal(shape: str) -> bool:
    """Does this shape generate text?"""
    return generates(SHAPES[shape][0])

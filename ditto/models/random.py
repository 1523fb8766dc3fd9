"""Shapes with random weights of realistic scale, for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ditto.errors import UsageError
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Dimensions, LayerRanges, Neurons, ScoreRange
from ditto.models.importer import describe, encode_weights, fitted
from ditto.models.registry import architecture_of, generates
from ditto.models.tokenizer import Batch

SHAPES = {  # class, layers, hidden, heads, inner
    "bert-tiny": ("BertModel", 2, 128, 2, 512),
    "minilm": ("BertModel", 6, 384, 12, 1536),
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
# as seen on pretrained checkpoints, so that the cost is a real model's
LEAST_SCORES = ScoreRange(size=25.0, above=25.0, below=31.0, spread=35.0)
LEAST_GELU = 12.0


def random_model(
    shape: str,
    layers: int | None,
    seq: int,
    preset: str = "ditto",
    seed: int = 0,
    real: Sequence[LayerRanges] = (),
) -> tuple[Description, Tensors, Checkpoint]:
    """A shape with random weights, calibrated on random tokens: (description, encoded weights, checkpoint).

    Ranges are at least those of `real`, a trained model's layers, spread over this one's; without them scores reach
    LEAST_SCORES and all neurons LEAST_GELU. The weights are no secret, so torch's generator serves. Raises UsageError.
    """
    return scaled_model(random_checkpoint(shape, layers, seed), shape, seq, preset, seed, real)


def scaled_model(
    checkpoint: Checkpoint, name: str, seq: int, preset: str = "ditto", seed: int = 0, real: Sequence[LayerRanges] = ()
) -> tuple[Description, Tensors, Checkpoint]:
    """The same of random weights at hand."""
    description, checkpoint = scaled_description(checkpoint, name, seq, preset, seed, real)
    return description, encode_weights(description, checkpoint.tensors), checkpoint


def scaled_description(
    checkpoint: Checkpoint, name: str, seq: int, preset: str = "ditto", seed: int = 0, real: Sequence[LayerRanges] = ()
) -> tuple[Description, Checkpoint]:
    """The same without the encoded weights, which counting needs not."""
    longest = checkpoint.dimensions.positions
    if not 1 <= seq <= longest:
        raise UsageError(f"length {seq}: 1 to {longest}")
    batch = random_batch(1, seq, seed)
    batch = Batch(batch.ids % checkpoint.dimensions.vocabulary, batch.types, batch.mask)
    found, checkpoint = describe(checkpoint, name, [batch], preset)
    inner, many = checkpoint.dimensions.inner, len(found.ranges.layers)
    wide = [
        _as_wide(layer, real[i * len(real) // many], inner) if real else _widened(layer, inner)
        for i, layer in enumerate(found.ranges.layers)
    ]
    description = fitted(
        found.model_copy(update={"ranges": found.ranges.model_copy(update={"layers": tuple(wide)}), "functions": ()})
    )
    return description, checkpoint


def _widened(layer: LayerRanges, inner: int) -> LayerRanges:
    activation = max(layer.activation, LEAST_GELU)
    neurons = (Neurons(count=inner, bound=activation),)
    scores = _widest(layer.scores, LEAST_SCORES)
    return layer.model_copy(update={"scores": scores, "activation": activation, "neurons": neurons})


def _widest(a: ScoreRange, b: ScoreRange) -> ScoreRange:
    return ScoreRange(**{name: max(x, getattr(b, name)) for name, x in a.model_dump().items()})


def _as_wide(layer: LayerRanges, real: LayerRanges, inner: int) -> LayerRanges:
    """At least the ranges of a trained layer, its neurons in the same parts."""
    own, theirs = layer.model_dump(), real.model_dump()
    bounds = {name: max(own[name], theirs[name]) for name, value in own.items() if isinstance(value, float)}
    norms = {
        name: {
            "input": max(own[name]["input"], theirs[name]["input"]),
            "output": max(own[name]["output"], theirs[name]["output"]),
            "variance": (
                min(own[name]["variance"][0], theirs[name]["variance"][0]),
                max(own[name]["variance"][1], theirs[name]["variance"][1]),
            ),
        }
        for name in ("norm1", "norm2")
    }
    scores = _widest(layer.scores, real.scores)
    return LayerRanges.model_validate(
        own | bounds | norms | {"scores": scores, "neurons": _scaled(real.neurons, inner)}
    )


def _scaled(neurons: Sequence[Neurons], inner: int) -> tuple[Neurons, ...]:
    """The same parts of another number; what rounding leaves goes to the first group."""
    total = sum(group.count for group in neurons)
    counts = [max(1, group.count * inner // total) for group in neurons]
    counts[0] += inner - sum(counts)
    return tuple(Neurons(count=n, bound=group.bound) for n, group in zip(counts, neurons, strict=True))


def random_checkpoint(shape: str, layers: int | None = None, seed: int = 0) -> Checkpoint:
    """The shape's random weights alone. Raises UsageError."""
    if shape not in SHAPES:
        raise UsageError(f"shape {shape!r}: one of {', '.join(SHAPES)}")
    name, count, hidden, heads, inner = SHAPES[shape]
    d = Dimensions(
        **DIMENSIONS[name], layers=layers or count, hidden=hidden, heads=heads, inner=inner, embedding=hidden
    )  # type: ignore[arg-type]
    return random_weights(name, d, seed)


def random_weights(name: str, d: Dimensions, seed: int = 0) -> Checkpoint:
    """Of a class and its sizes."""
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

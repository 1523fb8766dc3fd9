"""A checkpoint, or a shape with random weights, becomes a description and encoded weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ditto.errors import RangeError, TextTooLong, UsageError
from ditto.models import bert, gpt2
from ditto.models.bert_weights import bert_weights
from ditto.models.checkpoint import Checkpoint, expected
from ditto.models.gpt2_calibrate import calibrate_gpt2
from ditto.models.gpt2_weights import gpt2_weights
from ditto.models.plan import Plan
from ditto.models.ranges import calibrate
from ditto.models.tokenizer import BUCKETS, Batch, Prompts, Tokenizer
from ditto.presets import preset_of
from ditto.ring.fixedpoint import encode

Tensor = torch.Tensor
SHAPES = {  # layers, hidden, heads, inner
    "bert-tiny": (2, 128, 2, 512),
    "bert-base": (12, 768, 12, 3072),
    "bert-large": (24, 1024, 16, 4096),
    "gpt2-tiny": (2, 128, 2, 512),
    "gpt2": (12, 768, 12, 3072),
    "gpt2-medium": (24, 1024, 16, 4096),
}
PADDED = 16  # texts that a causal model is also calibrated on with their padding
KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "layer_norm_eps",
    "max_position_embeddings", "type_vocab_size", "id2label", "activation",
)  # fmt: skip


def import_model(
    checkpoint: Checkpoint, name: str, texts: list[str], preset: str = "ditto", embeddings: str = "secret"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Calibrate on texts and encode the weights: (description, ring integers by the program's weight names)."""
    if not texts:
        raise UsageError("calibration needs at least one line of text")
    limit = checkpoint.config["max_position_embeddings"]
    tokenizer = checkpoint.tokenizer()
    batches: list[Batch] | list[Prompts]
    if checkpoint.causal:
        batches = causal_batches(tokenizer, texts, limit)
    else:
        batches = [tokenizer.encode([text], limit) for text in texts if text.strip()]
    spec = describe(checkpoint, name, batches, preset, embeddings)
    return spec, encode_weights(spec, checkpoint.tensors)


def causal_batches(tokenizer: Tokenizer, texts: list[str], limit: int) -> list[Prompts]:
    """All texts as one, in windows of the model's positions, so that late ones count; and some as padded prompts."""
    ids = tokenizer.encode_prompts(["\n".join(texts)], sys.maxsize, bucket=False).ids
    rows = [Prompts(ids[:, i : i + limit], [min(limit, ids.shape[1] - i)]) for i in range(0, ids.shape[1], limit)]
    for text in [text for text in texts if text.strip()][:PADDED]:
        with contextlib.suppress(TextTooLong):  # its windows count
            rows.append(tokenizer.encode_prompts([text], limit))
    return rows


def describe(
    checkpoint: Checkpoint, name: str, batches: Sequence[Batch | Prompts], preset: str, embeddings: str
) -> dict[str, Any]:
    """Calibrate on token batches: the public description."""
    chosen = preset_of(preset)
    if embeddings not in ("secret", "public"):
        raise UsageError(f"embeddings {embeddings!r}: secret or public")
    if checkpoint.quad and not chosen.quad:
        raise UsageError(f"this checkpoint was trained with Quad in the place of GELU, which preset {preset} has not")
    config, tensors = checkpoint.config, checkpoint.tensors
    if checkpoint.causal:
        _ = chosen.causal
        if embeddings == "public":
            raise UsageError("GPT-2's embeddings are its language-model head, too: they can only be secret")
        ranges = calibrate_gpt2(tensors, config, [batch.ids for batch in batches])
    else:
        ranges = calibrate(tensors, config, [batch for batch in batches if isinstance(batch, Batch)])
    return {
        "name": name,
        "format": gpt2.FORMAT if checkpoint.causal else bert.FORMAT,
        "architecture": checkpoint.architecture,
        "preset": preset,
        "max_length": config["max_position_embeddings"],
        "embeddings": embeddings,
        "config": {key: config[key] for key in KEPT if key in config},
        "calibration": ranges,
    }


def encode_weights(spec: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fixed-point weights by the program's names. Raises RangeError for one that does not fit its type."""
    preset = preset_of(spec["preset"])
    if spec["architecture"] == "GPT2LMHeadModel":
        program = gpt2.compile_gpt2(spec, Plan(1, 1))
        real = gpt2_weights(spec["config"], tensors, preset.causal)
    else:
        program = bert.compile_bert(spec, 1, min(BUCKETS[0], spec["max_length"]))
        real = bert_weights(spec["config"], tensors, preset.style)
    encoded = {}
    for name, wire in program.weights.items():
        try:
            encoded[name] = encode(real[name], wire.ring, wire.frac)
        except OverflowError as error:
            raise RangeError(f"weight {name}: {error}") from error
    return encoded


def random_model(
    shape: str, layers: int | None, seq: int, preset: str = "ditto", seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor], Checkpoint]:
    """A shape with random weights of realistic scale, calibrated on random tokens, for benchmarks.

    The weights are no secret, so torch's generator serves. Scores and GELU inputs get at least the ranges seen
    on pretrained checkpoints (25 and 12), so that the cost is that of a real model. Raises UsageError.
    """
    if shape not in SHAPES:
        raise UsageError(f"shape {shape!r}: one of {', '.join(SHAPES)}")
    count, hidden, heads, inner = SHAPES[shape]
    causal = shape.startswith("gpt2")
    config = {
        "hidden_size": hidden, "num_hidden_layers": layers or count, "num_attention_heads": heads,
        "intermediate_size": inner, "vocab_size": 50257 if causal else 30522,
        "max_position_embeddings": 1024 if causal else 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-5 if causal else 1e-12,
    }  # fmt: skip
    architecture = "GPT2LMHeadModel" if causal else "BertModel"
    longest = config["max_position_embeddings"]
    if not 1 <= seq <= longest:
        raise UsageError(f"length {seq}: 1 to {longest}")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, size in expected(config, architecture).items():
        if "LayerNorm" in name or "ln_" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            tensors[name] = base + 0.1 * torch.randn(size, generator=generator)
        else:
            tensors[name] = 0.04 * torch.randn(size, generator=generator)
    checkpoint = Checkpoint(architecture, config, tensors)
    batch = random_batch(1, seq, seed)
    spec = describe(checkpoint, shape, [batch], preset, "secret")
    for layer in spec["calibration"]["layers"]:
        layer["scores"] = max(layer["scores"], 25.0)
        layer["gelu"] = max(layer["gelu"], 12.0)
    return spec, encode_weights(spec, tensors), checkpoint


def random_batch(size: int, seq: int, seed: int = 0) -> Batch:
    """Random token ids, no padding."""
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(1000, 30000, (size, seq), generator=generator)
    return Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))

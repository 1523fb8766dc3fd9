"""A checkpoint, or a shape with random weights, becomes a description and encoded weights."""

from __future__ import annotations

import math
from typing import Any

import torch

from ditto.errors import RangeError, UsageError
from ditto.fixedpoint import encode
from ditto.models.bert import FORMAT, compile_bert
from ditto.models.checkpoint import Checkpoint, expected
from ditto.presets import preset_of
from ditto.quantize import calibrate, centre
from ditto.tokenizer import BUCKETS, Batch

Tensor = torch.Tensor
SHAPES = {  # layers, hidden, heads, inner
    "bert-tiny": (2, 128, 2, 512),
    "bert-base": (12, 768, 12, 3072),
    "bert-large": (24, 1024, 16, 4096),
}
KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "layer_norm_eps",
    "max_position_embeddings", "type_vocab_size", "id2label",
)  # fmt: skip


def import_model(
    checkpoint: Checkpoint, name: str, texts: list[str], preset: str = "ditto", embeddings: str = "secret"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Calibrate on texts and encode the weights: (description, ring integers by the program's weight names)."""
    if not texts:
        raise UsageError("calibration needs at least one line of text")
    limit = checkpoint.config["max_position_embeddings"]
    tokenizer = checkpoint.tokenizer()
    batches = [tokenizer.encode([text], limit) for text in texts if text.strip()]
    spec = describe(checkpoint, name, batches, preset, embeddings)
    return spec, encode_weights(spec, checkpoint.tensors)


def describe(checkpoint: Checkpoint, name: str, batches: list[Batch], preset: str, embeddings: str) -> dict[str, Any]:
    """Calibrate on token batches: the public description."""
    preset_of(preset)
    if embeddings not in ("secret", "public"):
        raise UsageError(f"embeddings {embeddings!r}: secret or public")
    config = checkpoint.config
    return {
        "name": name,
        "format": FORMAT,
        "architecture": checkpoint.architecture,
        "preset": preset,
        "max_length": config["max_position_embeddings"],
        "embeddings": embeddings,
        "config": {key: config[key] for key in KEPT if key in config},
        "calibration": calibrate(checkpoint.tensors, config, batches),
    }


def encode_weights(spec: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fixed-point weights by the program's names: W transposed, Q scaled by 1/sqrt(d), gamma by its constant.

    Where the preset asks for it, what is added up before a LayerNorm is centred: tables by row, weights and biases
    over the output features.
    """
    config = spec["config"]
    program = compile_bert(spec, 1, min(BUCKETS[0], spec["max_length"]))
    real: dict[str, Tensor] = {}
    word, kinds = (tensors[f"embeddings.{part}_embeddings.weight"] for part in ("word", "token_type"))
    real["embeddings"] = torch.cat([word, kinds])
    real["positions"] = tensors["embeddings.position_embeddings.weight"]
    norms = {"embeddings.norm": "embeddings.LayerNorm"}
    for i in range(config["num_hidden_layers"]):
        at, to = f"encoder.layer.{i}.", f"layer.{i}."
        shrink = 1 / math.sqrt(config["hidden_size"] // config["num_attention_heads"])
        for part in ("weight", "bias"):
            q, k, v = (tensors[f"{at}attention.self.{p}.{part}"] for p in ("query", "key", "value"))
            real[f"{to}qkv.{part}"] = torch.cat([q * shrink, k, v])
            for ours, theirs in (
                ("out", "attention.output.dense"),
                ("ffn1", "intermediate.dense"),
                ("ffn2", "output.dense"),
            ):
                real[f"{to}{ours}.{part}"] = tensors[f"{at}{theirs}.{part}"]
        norms |= {f"{to}norm1": f"{at}attention.output.LayerNorm", f"{to}norm2": f"{at}output.LayerNorm"}
    for ours in ("pooler", "classifier"):
        for part in ("weight", "bias"):
            theirs = f"pooler.dense.{part}" if ours == "pooler" else f"classifier.{part}"
            if theirs in tensors:
                real[f"{ours}.{part}"] = tensors[theirs]
    width = config["hidden_size"]
    for ours, theirs in norms.items():
        real[f"{ours}.gamma"] = tensors[f"{theirs}.weight"] * math.sqrt(width / 2.0 ** round(math.log2(width)))
        real[f"{ours}.beta"] = tensors[f"{theirs}.bias"]
    if preset_of(spec["preset"]).style.centred:
        for name in real:
            if name.endswith((".out.weight", ".ffn2.weight")):
                real[name] = centre(real[name].t()).t()
            elif name in ("embeddings", "positions") or name.endswith((".out.bias", ".ffn2.bias")):
                real[name] = centre(real[name])
    encoded = {}
    for name, wire in program.weights.items():
        w = real[name].t() if wire.kind == "matrix" and name != "embeddings" else real[name]
        try:
            encoded[name] = encode(w, wire.ring, wire.frac)
        except OverflowError as error:
            raise RangeError(f"weight {name}: {error}") from error
    return encoded


def random_model(
    shape: str, layers: int | None, seq: int, preset: str = "ditto", seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor], Checkpoint]:
    """A BERT shape with random weights of realistic scale, calibrated on random tokens, for benchmarks.

    The weights are no secret, so torch's generator serves. Scores and GELU inputs get at least the ranges seen
    on pretrained checkpoints (25 and 12), so that the cost is that of a real model. Raises UsageError.
    """
    if shape not in SHAPES:
        raise UsageError(f"shape {shape!r}: one of {', '.join(SHAPES)}")
    count, hidden, heads, inner = SHAPES[shape]
    config = {
        "hidden_size": hidden, "num_hidden_layers": layers or count, "num_attention_heads": heads,
        "intermediate_size": inner, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }  # fmt: skip
    if not 1 <= seq <= 512:
        raise UsageError(f"length {seq}: 1 to 512")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, size in expected(config, "BertModel").items():
        if "LayerNorm" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            tensors[name] = base + 0.1 * torch.randn(size, generator=generator)
        else:
            tensors[name] = 0.04 * torch.randn(size, generator=generator)
    checkpoint = Checkpoint("BertModel", config, tensors)
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

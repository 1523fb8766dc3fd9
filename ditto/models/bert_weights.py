"""BERT's tensors as its programs take them."""

from __future__ import annotations

import math
from typing import Any

import torch

from ditto.functions.layernorm import deviation_scale
from ditto.models.ranges import centre
from ditto.presets.style import Style

Tensor = torch.Tensor


def bert_weights(config: dict[str, Any], tensors: dict[str, Tensor], style: Style) -> dict[str, Tensor]:
    """Real weights by the program's names, matrices [inputs, outputs]: Q scaled by 1/sqrt(d), gamma by its constant.

    Where the preset asks for it, what is added up before a LayerNorm is centred: tables by row, weights and biases
    over the output features.
    """
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
    real = {name: w.t() if name.endswith(".weight") else w for name, w in real.items()}
    for ours, theirs in norms.items():
        real[f"{ours}.gamma"] = tensors[f"{theirs}.weight"] * deviation_scale(config["hidden_size"])
        real[f"{ours}.beta"] = tensors[f"{theirs}.bias"]
    if style.centred:
        ends = (".out.weight", ".out.bias", ".ffn2.weight", ".ffn2.bias")
        for name in real:
            if name in ("embeddings", "positions") or name.endswith(ends):
                real[name] = centre(real[name])
    return real

"""GPT-2's tensors as its programs take them."""

from __future__ import annotations

import math
from typing import Any

import torch

from ditto.functions.layernorm import deviation_scale
from ditto.models.ranges import centre
from ditto.presets.causal import CausalStyle

Tensor = torch.Tensor


def gpt2_weights(config: dict[str, Any], t: dict[str, Tensor], style: CausalStyle) -> dict[str, Tensor]:
    """Real weights by the programs' names, matrices [inputs, outputs].

    Queries are scaled by 1/sqrt(d), gamma by the constant of the inverse deviation. A folded style has
    W' = diag(gamma) W and b' = beta W + b after each LayerNorm; a centred one has what leads into the residual
    stream without its mean over the features.
    """
    width = config["hidden_size"]
    scale = deviation_scale(width)
    real: dict[str, Tensor] = {"embeddings": torch.cat([t["wte.weight"], t["wpe.weight"]])}

    def after_norm(name: str, norm: str, theirs: str, w: Tensor, bias: Tensor) -> None:
        gamma, beta = t[f"{theirs}.weight"], t[f"{theirs}.bias"]
        if style.folded:
            w, bias = scale * gamma[:, None] * w, beta @ w + bias
        else:
            real[f"{norm}.gamma"], real[f"{norm}.beta"] = gamma * scale, beta
        real[f"{name}.weight"], real[f"{name}.bias"] = w, bias

    def into_stream(name: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            w = t[f"{theirs}.{part}"]
            real[f"{name}.{part}"] = centre(w) if style.centred else w

    shrink = torch.ones(3 * width)
    shrink[:width] = 1 / math.sqrt(width // config["num_attention_heads"])
    for i in range(config["num_hidden_layers"]):
        at, to = f"h.{i}", f"layer.{i}"
        qkv, bias = t[f"{at}.attn.c_attn.weight"] * shrink, t[f"{at}.attn.c_attn.bias"] * shrink
        after_norm(f"{to}.qkv", f"{to}.norm1", f"{at}.ln_1", qkv, bias)
        into_stream(f"{to}.out", f"{at}.attn.c_proj")
        after_norm(
            f"{to}.ffn1", f"{to}.norm2", f"{at}.ln_2", t[f"{at}.mlp.c_fc.weight"], t[f"{at}.mlp.c_fc.bias"]
        )
        into_stream(f"{to}.ffn2", f"{at}.mlp.c_proj")
    after_norm("head", "final", "ln_f", t["wte.weight"].t(), torch.zeros(config["vocab_size"]))
    if style.centred:
        real["embeddings"] = centre(real["embeddings"])
    return real

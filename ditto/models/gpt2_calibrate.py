"""Calibration of GPT-2: the ranges that fix its types and bounds (see `ditto.models.ranges`)."""

from __future__ import annotations

from typing import Any

import torch

from ditto.models.gpt2_float import forward, logits
from ditto.models.ranges import ACTIVATION_MARGIN, SCORE_MARGIN, Ranges, centre


def calibrate_gpt2(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], batches: list[torch.Tensor]
) -> dict[str, Any]:
    """Return the calibration part of a model's description (JSON) from token ids [B, N]; padding counts too."""
    seen = Ranges()
    count = config["num_hidden_layers"]
    with torch.inference_mode():
        for ids in batches:
            hidden = forward(tensors, config, ids, seen)
            seen(count, "logits", logits(tensors, hidden))
    norms = [[f"h.{i}.{n}" for n in ("ln_1", "ln_2")] for i in range(count)] + [["ln_f", "ln_f"]]
    layers = []
    for i in range(count):
        wide = {name: seen.most[i, name] * ACTIVATION_MARGIN for name in ("qkv", "context", "attention", "mlp")}
        layers.append(
            wide
            | {
                "scores": seen.most[i, "scores"] * SCORE_MARGIN,
                "gelu": max(2.0, seen.most[i, "gelu"] * 1.25),
                "norm1": seen.norm(i, norms[i][0]),
                "norm2": seen.norm(i, norms[i][1]),
                "after": seen.most[min(i + 1, count), f"{norms[i + 1][0]}.in"] * ACTIVATION_MARGIN,
            }
        )
    tables = [tensors[f"{part}.weight"] for part in ("wte", "wpe")]
    return {
        "embeddings": {"bound": sum(float(max(w.abs().max(), centre(w).abs().max())) for w in tables)},
        "layers": layers,
        "final": seen.norm(count, "ln_f"),
        "logits": seen.most[count, "logits"] * 2,
    }

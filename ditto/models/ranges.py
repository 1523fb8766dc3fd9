"""Calibration: run the plaintext model over texts and record the ranges that fix types and bounds.

Bounds are maxima over everything seen, outlier channels included: nothing is clipped. Margins leave room
for what calibration did not see; a value beyond them wraps, which the plain interpreter reproduces.
"""

from __future__ import annotations

from typing import Any

import torch

from ditto.models.tokenizer import Batch

ACTIVATION_MARGIN, SCORE_MARGIN, VARIANCE_MARGIN = 1.5, 1.5, 2.0


def centre(x: torch.Tensor) -> torch.Tensor:
    """x less the mean over its last dimension."""
    return x - x.mean(-1, keepdim=True)


class Ranges:
    """Maxima of |x|, and minima and maxima of row variances, by (layer, name). LayerNorm inputs count centred, too."""

    def __init__(self) -> None:
        self.most: dict[tuple[int, str], float] = {}
        self.variance: dict[tuple[int, str], tuple[float, float]] = {}
        self._mask = torch.ones(1, 1)

    def __call__(self, layer: int, name: str, x: torch.Tensor) -> None:
        key = (layer, name)
        self.most[key] = max(self.most.get(key, 0.0), float(x.abs().max()))
        if name.endswith(".in"):
            self.most[key] = max(self.most[key], float(centre(x).abs().max()))
            var = x.var(-1, unbiased=False)
            lo, hi = self.variance.get(key, (float("inf"), 0.0))
            self.variance[key] = min(lo, float(var.min())), max(hi, float(var.max()))

    def norm(self, layer: int, name: str) -> dict[str, Any]:
        lo, hi = self.variance[layer, f"{name}.in"]
        return {
            "in": self.most[layer, f"{name}.in"] * ACTIVATION_MARGIN,
            "out": self.most[layer, f"{name}.out"] * ACTIVATION_MARGIN,
            "var": [lo / VARIANCE_MARGIN, hi * VARIANCE_MARGIN],
        }


def calibrate(tensors: dict[str, torch.Tensor], config: dict[str, Any], batches: list[Batch]) -> dict[str, Any]:
    """Return the calibration part of a model's description (JSON). Padding tokens count too: they are computed."""
    from ditto.models.bert_float import classify, forward  # ditto.models needs this package, whoever comes first

    seen = Ranges()
    with torch.inference_mode():
        for batch in batches:
            hidden = forward(tensors, config, batch.ids, batch.types, batch.mask, seen)
            if "classifier.weight" in tensors:
                classify(tensors, hidden, seen)
    tables = [tensors[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")]
    embeddings = seen.norm(-1, "embeddings.LayerNorm")
    layers = []
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        layers.append(
            {
                "qkv": seen.most[i, "qkv"] * ACTIVATION_MARGIN,
                "scores": seen.most[i, "scores"] * SCORE_MARGIN,
                "context": seen.most[i, "context"] * ACTIVATION_MARGIN,
                "gelu": max(2.0, seen.most[i, "gelu"] * 1.25),
                "norm1": seen.norm(i, f"{at}attention.output.LayerNorm"),
                "norm2": seen.norm(i, f"{at}output.LayerNorm"),
            }
        )
    result: dict[str, Any] = {
        "embeddings": {
            "bound": sum(float(max(table.abs().max(), centre(table).abs().max())) for table in tables),
            "out": embeddings["out"],
            "var": embeddings["var"],
        },
        "layers": layers,
    }
    if "classifier.weight" in tensors:
        result["head"] = {
            "pooler": seen.most[-2, "pooler"] * ACTIVATION_MARGIN,
            "logits": max(1.0, seen.most[-2, "logits"] * 2),
        }
    return result

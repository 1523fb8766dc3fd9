"""BERT in plaintext floats, with observers: calibration, and the answer that `--check` compares with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Observe = Callable[[int, str, Tensor], None]


def silent(layer: int, name: str, x: Tensor) -> None:
    """Observe nothing."""


def norm(x: Tensor, t: dict[str, Tensor], name: str, eps: float, layer: int, observe: Observe) -> Tensor:
    observe(layer, f"{name}.in", x)
    y = F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)
    observe(layer, f"{name}.out", y)
    return y


def forward(
    t: dict[str, Tensor], config: dict[str, Any], ids: Tensor, types: Tensor, mask: Tensor, observe: Observe = silent
) -> Tensor:
    """Return the last hidden state [B, N, H]. Layer -1 stands for the embeddings in what is observed."""
    eps, heads = config.get("layer_norm_eps", 1e-12), config["num_attention_heads"]
    batch, n = ids.shape
    x = F.embedding(ids, t["embeddings.word_embeddings.weight"])
    x = x + F.embedding(types, t["embeddings.token_type_embeddings.weight"])
    x = x + t["embeddings.position_embeddings.weight"][:n]
    x = norm(x, t, "embeddings.LayerNorm", eps, -1, observe)
    padding = (1.0 - mask[:, None, None, :].float()) * -1e9
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."

        def dense(y: Tensor, name: str, at: str = at) -> Tensor:
            return F.linear(y, t[f"{at}{name}.weight"], t[f"{at}{name}.bias"])

        def split(y: Tensor) -> Tensor:
            return y.view(batch, n, heads, -1).transpose(1, 2)

        q, k, v = (split(dense(x, f"attention.self.{part}")) for part in ("query", "key", "value"))
        q = q / math.sqrt(q.shape[-1])
        for name, value in (("qkv", q), ("qkv", k), ("qkv", v)):
            observe(i, name, value)
        scores = q @ k.transpose(-1, -2)
        observe(i, "scores", scores)
        a = ((scores + padding).softmax(-1) @ v).transpose(1, 2).reshape(batch, n, -1)
        observe(i, "context", a)
        x = norm(x + dense(a, "attention.output.dense"), t, f"{at}attention.output.LayerNorm", eps, i, observe)
        h = dense(x, "intermediate.dense")
        observe(i, "gelu", h)
        x = norm(x + dense(F.gelu(h), "output.dense"), t, f"{at}output.LayerNorm", eps, i, observe)
    return x


def classify(t: dict[str, Tensor], hidden: Tensor, observe: Observe = silent) -> Tensor:
    """Pooler and classifier: logits [B, labels]."""
    pooled = F.linear(hidden[:, 0], t["pooler.dense.weight"], t["pooler.dense.bias"])
    observe(-2, "pooler", pooled)
    logits = F.linear(pooled.tanh(), t["classifier.weight"], t["classifier.bias"])
    observe(-2, "logits", logits)
    return logits

"""GPT-2 in plaintext floats, with taps: calibration, fine-tuning, and the text that `--check` compares with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ditto.models.architecture import Tensors
from ditto.models.description import Dimensions
from ditto.models.ranges import Observe, silent, tapped_norm

Tensor = torch.Tensor


def same(x: Tensor) -> Tensor:
    """Change nothing."""
    return x


def tanh_gelu(x: Tensor) -> Tensor:
    """GPT-2's GELU."""
    return F.gelu(x, approximate="tanh")


def quad(x: Tensor) -> Tensor:
    """0.125 x^2 + 0.25 x + 0.5, in the place of GELU (MPCFormer, section 3.1)."""
    return ((x + 1) ** 2 + 3) / 8


def forward(
    t: Tensors, d: Dimensions, ids: Tensor, observe: Observe = silent, rounded: Callable[[Tensor], Tensor] = same
) -> Tensor:
    """Token ids [B, N] -> the hidden states after the last LayerNorm, [B, N, H].

    Padding belongs on the right, where causal attention keeps it from every real token. In what is observed the number
    after the last layer's stands for the last LayerNorm. `rounded` is what every input of a linear layer goes through.
    """
    function = quad if d.activation == "quad" else tanh_gelu
    batch, n = ids.shape
    future = torch.ones(n, n, dtype=torch.bool, device=ids.device).triu(1)

    def norm(x: Tensor, name: str, layer: int) -> Tensor:
        return tapped_norm(x, t, name, d.epsilon, layer, observe)

    def dense(x: Tensor, name: str) -> Tensor:
        return rounded(x) @ t[f"{name}.weight"] + t[f"{name}.bias"]

    x = F.embedding(ids, t["wte.weight"]) + t["wpe.weight"][:n]
    for i in range(d.layers):
        at = f"h.{i}"
        qkv = dense(norm(x, f"{at}.ln_1", i), f"{at}.attn.c_attn")
        q, k, v = (y.view(batch, n, d.heads, -1).transpose(1, 2) for y in qkv.chunk(3, -1))
        q = q / math.sqrt(q.shape[-1])
        for y in (q, k, v):
            observe(i, "qkv", y)
        scores = q @ k.transpose(-1, -2)
        observe(i, "scores", scores)
        scores = scores.masked_fill(future, -torch.inf)
        observe(i, "masked scores", scores)
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, -1)
        observe(i, "context", context)
        y = dense(context, f"{at}.attn.c_proj")
        observe(i, "attention", y)
        x = x + y
        h = dense(norm(x, f"{at}.ln_2", i), f"{at}.mlp.c_fc")
        observe(i, "activation", h)
        y = dense(function(h), f"{at}.mlp.c_proj")
        observe(i, "ffn", y)
        x = x + y
    return norm(x, "ln_f", d.layers)


def logits(t: Tensors, hidden: Tensor) -> Tensor:
    """Next-token logits [..., V] by the tied embeddings."""
    return hidden @ t["wte.weight"].t()


def continue_texts(
    t: Tensors,
    d: Dimensions,
    texts: list[list[int]],
    count: int,
    choose: Callable[[Tensor], list[int]],
    stop: int | None = None,
) -> list[list[int]]:
    """Up to `count` tokens after each text as `choose` picks them from logits [B, V]; one ends with `stop`."""
    ids, new, ended = [list(text) for text in texts], [[] for _ in texts], [False] * len(texts)  # type: ignore[var-annotated]
    with torch.inference_mode():
        for _ in range(count):
            rows = [logits(t, forward(t, d, torch.tensor([text]))[0, -1]) for text in ids]
            for i, token in enumerate(choose(torch.stack(rows))):
                if not ended[i]:
                    new[i].append(token)
                    ended[i] = token == stop
                ids[i].append(new[i][-1])  # a text that has ended goes on with its last token, as under MPC
            if all(ended):
                break
    return new

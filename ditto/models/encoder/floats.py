"""An encoder in plaintext floats, with taps: calibration, and the answer that `--check` compares with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ditto.functions.softmax_published import SHIFT
from ditto.models.architecture import Tensors
from ditto.models.description import Dimensions
from ditto.models.ranges import HIDDEN_SCORE, Observe, silent, tapped_norm
from ditto.models.tokenizer import Batch
from ditto.ops.positions import buckets

Tensor = torch.Tensor
EMBEDDINGS = -1  # stands for the embeddings' layer in what is observed
Drop = Callable[[Tensor], Tensor]


def probabilities(scores: Tensor) -> Tensor:
    """Softmax by row."""
    return scores.softmax(-1)


def quad_probabilities(scores: Tensor) -> Tensor:
    """2Quad in its place: (x + 5)^2 / sum, 0 for what is not attended to. (MPCFormer, section 3.1.)"""
    squares = (scores + SHIFT).square() * (scores > HIDDEN_SCORE / 2)
    return squares / squares.sum(-1, keepdim=True)


class Functions(NamedTuple):
    """What a block computes: its activation, and attention probabilities of scores (HIDDEN_SCORE: not attended to)."""

    activation: Callable[[Tensor], Tensor] = F.gelu
    probabilities: Callable[[Tensor], Tensor] = probabilities


EXACT = Functions()


def token_types(batch: Batch, d: Dimensions) -> Tensor:
    """As the family's table has them: one with a single type knows no second segment."""
    return batch.types.clamp(max=max(d.token_types - 1, 0))


def whole(x: Tensor) -> Tensor:
    """Nothing is dropped."""
    return x


def forward(
    t: Tensors,
    d: Dimensions,
    batch: Batch,
    observe: Observe = silent,
    drop: Drop = whole,
    functions: Functions = EXACT,
) -> Tensor:
    """Token ids, types and mask -> the last hidden state [B, N, H]. Padding is computed, too, but not attended to.

    `drop`, in training, changes the embeddings and what each block adds to them. `functions`: what a preset computes.
    """

    def norm(x: Tensor, name: str, layer: int) -> Tensor:
        return tapped_norm(x, t, name, d.epsilon, layer, observe)

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    size, n = batch.shape
    x = F.embedding(batch.ids, t["embeddings.word.weight"]) + t["embeddings.position.weight"][:n]
    if d.token_types:
        x = x + F.embedding(token_types(batch, d), t["embeddings.type.weight"])
    x = drop(norm(x, "embeddings.norm", EMBEDDINGS))
    if d.embedding != d.hidden:
        x = dense(x, "embeddings.projection")
        observe(EMBEDDINGS, "projection", x)
    added = (1.0 - batch.mask[:, None, None, :].float()) * HIDDEN_SCORE
    bias: Tensor | int = 0
    if d.relative_buckets:
        bias = t["relative.weight"].t()[:, buckets(n, d.relative_buckets, d.relative_distance).to(x.device)]
    for i in range(d.layers):
        at = f"layer.{i}"
        q, k, v = (dense(x, f"{at}.{p}").view(size, n, d.heads, -1).transpose(1, 2) for p in ("query", "key", "value"))
        q = q / math.sqrt(q.shape[-1])
        for y in (q, k, v):
            observe(i, "qkv", y)
        scores = q @ k.transpose(-1, -2) + bias
        observe(i, "scores", scores)
        scores = scores + added
        observe(i, "masked scores", scores)
        context = (functions.probabilities(scores) @ v).transpose(1, 2).reshape(size, n, -1)
        observe(i, "context", context)
        y = dense(context, f"{at}.out")
        observe(i, "attention", y)
        x = norm(x + drop(y), f"{at}.norm1", i)
        h = dense(x, f"{at}.ffn1")
        observe(i, "activation", h)
        y = dense(functions.activation(h), f"{at}.ffn2")
        observe(i, "ffn", y)
        x = norm(x + drop(y), f"{at}.norm2", i)
    return x

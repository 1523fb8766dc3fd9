"""Perplexity of a language model on a text, whatever computes its logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ditto.errors import UsageError
from ditto.train.run import Watch

Tensor = torch.Tensor
ROWS = 256  # positions whose logits are held in fp32 at a time: 51 MB for GPT-2's 50,257 words


def perplexity(
    logits_fn: Callable[[Tensor], Tensor], ids: Tensor, context: int, batch: int = 4, watch: Watch | None = None
) -> float:
    """exp of `cross_entropy`: per token of the model's own vocabulary, so not comparable between tokenizers."""
    return math.exp(cross_entropy(logits_fn, ids, context, batch, watch)[0])


def cross_entropy(
    logits_fn: Callable[[Tensor], Tensor], ids: Tensor, context: int, batch: int = 4, watch: Watch | None = None
) -> tuple[float, int]:
    """(mean nats a token, tokens predicted) over non-overlapping windows of `context` tokens.

    `logits_fn` takes ids [B, N] with N = `context` and B at most `batch`, and returns the next token's logits [B, N, V]
    on any device, of any type. Each position predicts the token after it, the last one the first of the next window,
    so a token sees at most `context` tokens before it, and at least one. What is left at the end, less than a window,
    is not counted: every call has the same length. `watch(done, windows)` is called after each. Raises UsageError.
    """
    count = (ids.numel() - 1) // context
    if count < 1:
        raise UsageError(f"{ids.numel()} tokens: perplexity in windows of {context} needs at least {context + 1}")
    inputs, targets = windows(ids, context)
    total = 0.0
    with torch.inference_mode():
        for at in range(0, count, batch):
            scores = logits_fn(inputs[at : at + batch].long()).flatten(0, 1)
            wanted = targets[at : at + batch].long().flatten().to(scores.device)
            for row in range(0, len(wanted), ROWS):
                part = torch.nn.functional.cross_entropy(
                    scores[row : row + ROWS].float(), wanted[row : row + ROWS], reduction="sum"
                )
                total += float(part)
            if watch:
                watch(min(at + batch, count), count)
    return total / (count * context), count * context


def windows(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Consecutive inputs [M, context] and, one token later, their targets. A rest shorter than a window is left out."""
    count = (ids.numel() - 1) // context
    cut = count * context
    return ids[:cut].view(count, context), ids[1 : cut + 1].view(count, context)

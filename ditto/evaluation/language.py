"""Plain text in windows: a language model's nats a token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from ditto.errors import UsageError
from ditto.evaluation.modes import Ask
from ditto.evaluation.subject import Difference
from ditto.models.tokenizer import Prompts
from ditto.train.perplexity import nats, windows

Tensor = torch.Tensor


def logits_of(ask: Ask) -> Callable[[Tensor], Tensor]:
    """What `ditto.train.perplexity` measures, of a language model in any mode: ids [B, N] -> logits [B, N, V]."""
    return lambda ids: ask(Prompts(ids, [ids.shape[1]] * len(ids)))[0]


class Windows:
    """A `Subject`: consecutive windows of `context` tokens without overlap, each position predicting the next token
    (as `ditto.train.perplexity.cross_entropy` has them). An output is a window's mean in nats."""

    metrics = ("perplexity",)

    def __init__(self, ids: Tensor, context: int) -> None:
        """`ids`: [N]. Raises UsageError where they are no window."""
        if ids.numel() <= context:
            raise UsageError(f"{ids.numel()} tokens: windows of {context} need at least {context + 1}")
        self._inputs, self._targets = windows(ids.long(), context)
        self.size, self._context = len(self._inputs), context
        self.digest = hashlib.sha256(f"{context} {ids[: self.size * context + 1].tolist()}".encode()).hexdigest()

    def label(self, row: int) -> float:
        return 0.0

    def prepare(self, rows: Sequence[int]) -> None:
        """All windows are of one length."""

    def width(self, row: int) -> int:
        return self._context

    def batch(self, rows: Sequence[int]) -> Prompts:
        return Prompts(self._inputs[list(rows)], [self._context] * len(rows))

    def outputs(self, found: Tensor, rows: Sequence[int]) -> list[list[float]]:
        return [[total / self._context] for total in nats(found, self._targets[list(rows)])]

    def differences(self, found: Tensor, reference: Tensor, rows: Sequence[int]) -> list[Difference]:
        """Answers are the likeliest next tokens."""
        result = []
        for a, b in zip(found, reference, strict=True):
            differing = float((a.argmax(1) != b.argmax(1)).double().mean())
            result.append(Difference(differing, float((a - b).abs().max())))
        return result

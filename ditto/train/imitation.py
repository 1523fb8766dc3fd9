"""How near a student comes to its teacher: hidden states, attention and answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ditto.train.subject import Given

Tensor = torch.Tensor


def layers_loss(got: Given, wanted: Given, real: Tensor) -> Tensor:
    """Mean squares of hidden states and of contexts, over those of the teacher's: means over layers, their sum.
    `real` [B N, 1]: 0 for padding, which does not count, else 1.

    Where the paper compares attention probabilities, contexts stand for them: probabilities times values, which is what
    of them goes on, and what a program computes."""
    return _distance(got.hidden, wanted.hidden, real) + _distance(got.contexts, wanted.contexts, real)


def _distance(got: Sequence[Tensor], wanted: Sequence[Tensor], real: Tensor) -> Tensor:
    terms = [
        ((x.reshape(y.shape).float() - y).square() * real).sum() / (y.square() * real).sum()
        for x, y in zip(got, wanted, strict=True)
    ]
    return torch.stack(terms).mean()


def soft_cross_entropy(found: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy of logits [n, classes] to the probabilities of others (T = 1) less what it is at best: a mean."""
    return F.kl_div(found.log_softmax(1), true.log_softmax(1), log_target=True, reduction="batchmean")

"""The loss of a tied output layer over a large vocabulary, in pieces: logits of all positions are never in memory."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor
ROWS = 512  # positions at a time: 103 MB of logits for GPT-2's 50,257 words in fp32, half of it in bf16


class _OutputLoss(torch.autograd.Function):
    """Makes both gradients in the forward pass, while a piece's probabilities are there: three products, not four."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bf16: bool) -> Tensor:
        count, dtype = len(targets), torch.bfloat16 if bf16 else weight.dtype
        words, states = weight.to(dtype), hidden.to(dtype)
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        buffer = torch.empty((min(ROWS, count), len(words)), dtype=dtype, device=weight.device)
        losses = []
        for at in range(0, count, ROWS):
            part, wanted = states[at : at + ROWS], targets[at : at + ROWS, None]
            p = torch.mm(part, words.t(), out=buffer[: len(part)])
            torch.softmax(p, -1, out=p)
            hit = p.gather(1, wanted)
            losses.append(hit.float().clamp_min(1e-30).log())
            p.scatter_(1, wanted, hit - 1)
            to_hidden[at : at + ROWS] = p @ words
            if bf16:
                to_weight += p.t() @ part
            else:
                to_weight.addmm_(p.t(), part)
        ctx.save_for_backward(to_hidden.div_(count), to_weight.div_(count))
        return -torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * grads[0], to_weight * grads[0], None, None


def output_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *, bf16: bool = False) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` [T, V] against `targets` [T].

    With `bf16` the three products take rounded operands and the softmax is rounded once, sums staying in fp32: the
    gradient differs by some 0.4 %.
    """
    loss: Tensor = _OutputLoss.apply(hidden, weight, targets, bf16)  # type: ignore[no-untyped-call]
    return loss

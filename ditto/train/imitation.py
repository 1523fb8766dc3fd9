"""How near a student comes to its teacher: hidden states, attention and answers, of floats or of a preset's program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ditto.models.architecture import Tensors
from ditto.models.description import Dimensions
from ditto.models.encoder.encoder import Encoder
from ditto.models.encoder.floats import EXACT, Functions, forward, probabilities, quad_probabilities
from ditto.models.gpt2.floats import quad
from ditto.models.ranges import Observe, silent
from ditto.models.tokenizer import Batch
from ditto.presets.recipe import Recipe
from ditto.presets.style import Style

Tensor = torch.Tensor


class Given(Protocol):
    """What a model gives for a batch: `output` as its head does, logits [B, labels] or hidden states [B N, H]; by layer
    the hidden states after it and the contexts of its attention, [B N, H] each."""

    @property
    def output(self) -> Tensor: ...

    @property
    def hidden(self) -> Sequence[Tensor]: ...

    @property
    def contexts(self) -> Sequence[Tensor]: ...


class Model(Protocol):
    """A student or a teacher: weights by the project's names, and a batch."""

    def __call__(self, tensors: dict[str, Tensor], batch: Batch, /) -> Given: ...


class Shown(NamedTuple):
    output: Tensor
    hidden: list[Tensor]
    contexts: list[Tensor]


@dataclass(frozen=True)
class InFloats:
    """A model in floats, with a preset's functions but none of its roundings. `observe` sees it."""

    architecture: Encoder
    dimensions: Dimensions
    functions: Functions = EXACT
    observe: Observe = silent

    def __call__(self, tensors: Tensors, batch: Batch) -> Shown:
        kept: dict[str, list[Tensor]] = {"norm2.out": [], "context": []}

        def observe(layer: int, name: str, x: Tensor) -> None:
            if name in kept:
                kept[name].append(x.flatten(0, 1))
            self.observe(layer, name, x)

        hidden = forward(tensors, self.dimensions, batch, observe, functions=self.functions)
        output = self.architecture.head.floats(tensors, hidden, silent)
        return Shown(output.flatten(0, -2), kept["norm2.out"], kept["context"])


def functions_of(style: Style) -> Functions:
    """What a preset computes, as functions of reals."""
    squares = isinstance(style, Recipe) and style.squares
    return Functions(quad if style.quad else F.gelu, quad_probabilities if squares else probabilities)


def layers_loss(got: Given, wanted: Given, batch: Batch) -> Tensor:
    """Mean squares of hidden states and of contexts, over those of the teacher's: means over layers, their sum.

    Where the paper compares attention probabilities, contexts stand for them: probabilities times values, which is what
    of them goes on, and what a program computes."""
    real = batch.mask.reshape(-1, 1).float()
    return _distance(got.hidden, wanted.hidden, real) + _distance(got.contexts, wanted.contexts, real)


def _distance(got: Sequence[Tensor], wanted: Sequence[Tensor], real: Tensor) -> Tensor:
    terms = [
        ((x.reshape(y.shape).float() - y).square() * real).sum() / (y.square() * real).sum()
        for x, y in zip(got, wanted, strict=True)
    ]
    return torch.stack(terms).mean()


def output_loss(got: Given, wanted: Given, batch: Batch) -> Tensor:
    """Of classes: cross-entropy to the teacher's probabilities (T = 1) less what it is at best. Of one score: mean
    squares. Of hidden states: mean squares of their means over a text's tokens, over those of the teacher's."""
    found, true = answers(got, batch), answers(wanted, batch)
    if len(wanted.output) > len(true):
        return (found - true).square().sum() / true.square().sum()
    if true.shape[1] == 1:
        return (found - true).square().mean()
    return F.kl_div(found.log_softmax(1), true.log_softmax(1), log_target=True, reduction="batchmean")


def answers(got: Given, batch: Batch) -> Tensor:
    """One row a text: logits, or the mean of its tokens' hidden states."""
    size, n = batch.shape
    output = got.output.float()
    if len(output) == size:
        return output
    real = batch.mask[..., None].float()
    return (output.reshape(size, n, -1) * real).sum(1) / real.sum(1)

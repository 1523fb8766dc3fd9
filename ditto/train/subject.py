"""What a distillation is of: a kind of model with its texts, as `ditto.train.distill` takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Ranges
from ditto.models.ranges import Observe, Seen
from ditto.train.run import Watch

Tensor = torch.Tensor


class Given(Protocol):
    """What a model gives for a batch: `output` as its head does, logits [B, labels] or [B N, words], hidden states
    [B N, H]; by layer the hidden states after it and the contexts of its attention, [B N, H] each."""

    @property
    def output(self) -> Tensor: ...

    @property
    def hidden(self) -> Sequence[Tensor]: ...

    @property
    def contexts(self) -> Sequence[Tensor]: ...


class Shown(NamedTuple):
    output: Tensor
    hidden: list[Tensor]
    contexts: list[Tensor]


Model = Callable[[Tensors, Any], Given]  # weights by the project's names, a batch


class Subject(Protocol):
    """A teacher, its texts, and how a student of it is computed. A batch is whatever `batch` returns.

    `student`: class, sizes and weights that the student begins with; `identity`: what decides it, in digests;
    `norms`: LayerNorms of a block by the names under which they are observed; `layered`: do programs show their layers?
    """

    student: Checkpoint
    identity: dict[str, Any]
    norms: tuple[str, str]
    layered: bool

    def batch(self, step: int) -> Any:
        """Of a step, counted over all epochs."""

    def teacher(self, batch: Any) -> Given: ...

    def in_floats(self, tensors: Tensors, batch: Any, observe: Observe) -> Given:
        """The student's functions of reals. `observe` sees what calibration does."""

    def program(self, description: Description) -> Model:
        """The preset's program itself."""

    def layers_loss(self, got: Given, wanted: Given, batch: Any) -> Tensor: ...

    def output_loss(self, got: Given, wanted: Given, batch: Any) -> Tensor: ...

    def seen(self, tensors: Tensors) -> Seen:
        """What calibration sees of the student in floats."""

    def ranges(self, tensors: Tensors, seen: Seen) -> Ranges:
        """Of what was seen; neurons are in the order of their own ranges (`Seen.order`)."""

    def arranged(self, tensors: Tensors, orders: list[Tensor]) -> Tensors:
        """The same model with each block's neurons in another order."""

    def measure(self, model: Model, tensors: Tensors, watch: Watch | None) -> float:
        """How good a model is on texts held out."""

    def save(self, directory: Path, tensors: Tensors) -> None:
        """As a checkpoint, its tensors last."""

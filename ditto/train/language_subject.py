"""Distillation of a GPT-2 on windows of text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditto.errors import UsageError
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Dimensions, Ranges
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import forward, logits
from ditto.models.gpt2.gpt2 import GPT2
from ditto.models.gpt2.weights import arranged
from ditto.models.ranges import Observe, Seen, silent
from ditto.presets import preset_of
from ditto.train.imitation import layers_loss, soft_cross_entropy
from ditto.train.language_student import LanguageStudent
from ditto.train.perplexity import cross_entropy, windows
from ditto.train.run import Watch, digest
from ditto.train.subject import Given, Model, Shown
from ditto.train.text import Order

Tensor = torch.Tensor


class LanguageSubject:
    """Windows of `context` tokens without padding. A preset with Quad is learnt with Quad. A `Subject`."""

    norms = ("ln_1", "ln_2")
    layered = False

    def __init__(
        self, teacher: Checkpoint, train: Tensor, valid: Tensor, preset: str, *, batch: int, context: int, seed: int,
        calibrated: int, device: str = "cpu",
    ) -> None:  # fmt: skip
        """Token ids of the texts. `calibrated`: windows that ranges are taken from. Raises UsageError."""
        if not isinstance(teacher.architecture, GPT2) or teacher.directory is None:
            raise UsageError(f"{teacher.class_name}: a GPT-2 with its tokenizer expected")
        if context > teacher.dimensions.positions:
            raise UsageError(f"context {context}: this model has {teacher.dimensions.positions} positions")
        changed = {"activation": "quad"} if preset_of(preset).style.quad else {}
        self.student = replace(teacher, dimensions=teacher.dimensions.model_copy(update=changed))
        self._architecture, self._d, self._source = teacher.architecture, teacher.dimensions, teacher.directory
        self._teacher = {name: t.to(device) for name, t in teacher.tensors.items()}
        self._order, self._size, self._device = Order(train, context, seed), batch, torch.device(device)
        self._valid, self._context = valid, context
        chosen = torch.randperm(self._order.chunks, generator=torch.Generator().manual_seed(seed))[:calibrated]
        rows = windows(train, context)[0][chosen].long()
        self._calibration = [part.to(device) for part in torch.split(rows, batch)]
        self.identity: dict[str, Any] = {"train": digest([train]), "valid": digest([valid]), "context": context}

    def batch(self, step: int) -> Tensor:
        return self._order.batch(step * self._size, self._size)[0].to(self._device)

    def teacher(self, batch: Tensor) -> Given:
        return _floats(self._teacher, self._d, batch, silent)

    def in_floats(self, tensors: Tensors, batch: Tensor, observe: Observe) -> Given:
        return _floats(tensors, self.student.dimensions, batch, observe)

    def program(self, description: Description) -> Model:
        student = LanguageStudent(description)
        return lambda tensors, batch: Shown(student(tensors, batch).flatten(0, 1), [], [])

    def layers_loss(self, got: Given, wanted: Given, batch: Tensor) -> Tensor:
        return layers_loss(got, wanted, torch.ones(batch.numel(), 1, device=batch.device))

    def output_loss(self, got: Given, wanted: Given, batch: Tensor) -> Tensor:
        return soft_cross_entropy(got.output, wanted.output)

    def seen(self, tensors: Tensors) -> Seen:
        return self._architecture.seen(tensors, self.student.dimensions, self._calibration)

    def ranges(self, tensors: Tensors, seen: Seen) -> Ranges:
        return self._architecture.ranges(tensors, self.student.dimensions, seen)

    def arranged(self, tensors: Tensors, orders: list[Tensor]) -> Tensors:
        return arranged(tensors, orders)

    def measure(self, model: Model, tensors: Tensors, watch: Watch | None) -> float:
        """Mean nats a token."""

        def answer(ids: Tensor) -> Tensor:
            return model(tensors, ids.to(self._device)).output.reshape(*ids.shape, -1)

        return cross_entropy(answer, self._valid, self._context, self._size, watch)[0]

    def save(self, directory: Path, tensors: Tensors) -> None:
        save_gpt2(directory, self.student.dimensions, tensors, self._source)


def _floats(tensors: Tensors, d: Dimensions, ids: Tensor, observe: Observe) -> Shown:
    """Hidden states are those of the residual stream after each block: what the next LayerNorm reads."""
    hidden: list[Tensor] = []
    contexts: list[Tensor] = []

    def both(layer: int, name: str, x: Tensor) -> None:
        if name == "context":
            contexts.append(x.flatten(0, 1))
        elif (name == "ln_1.in" and layer) or name == "ln_f.in":
            hidden.append(x.flatten(0, 1))
        observe(layer, name, x)

    last = forward(tensors, d, ids, both)
    return Shown(logits(tensors, last).flatten(0, 1), hidden, contexts)

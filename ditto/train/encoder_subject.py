"""Distillation of an encoder: classes, scores, or hidden states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ditto.errors import UsageError
from ditto.files import read_json
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Ranges
from ditto.models.encoder.encoder import Encoder
from ditto.models.encoder.floats import EXACT, Functions, forward, probabilities, quad_probabilities
from ditto.models.encoder.weights import arranged
from ditto.models.export import save_encoder
from ditto.models.gpt2.floats import quad
from ditto.models.ranges import Observe, Seen, silent
from ditto.models.tokenizer import Batch, Text
from ditto.presets import preset_of
from ditto.presets.recipe import Recipe
from ditto.presets.style import Style
from ditto.train.imitation import layers_loss, soft_cross_entropy
from ditto.train.run import Watch
from ditto.train.student import Student
from ditto.train.subject import Given, Model, Shown
from ditto.train.widths import Widths

Tensor = torch.Tensor
Metric = Callable[[Tensor], float]  # of outputs, one row a text


class EncoderSubject:
    """Texts padded as requests are. A `Subject`."""

    norms = ("norm1", "norm2")
    layered = True

    def __init__(
        self, teacher: Checkpoint, train: Sequence[Text], valid: Sequence[Text], preset: str, *, batch: int,
        longest: int, seed: int, calibrated: int, device: str = "cpu", metric: Metric | None = None,
    ) -> None:  # fmt: skip
        """`metric` takes outputs of `valid`, in its order, and says how good they are; without it a model is measured
        by the loss to the teacher. Raises UsageError for what is no encoder."""
        if not isinstance(teacher.architecture, Encoder) or teacher.directory is None:
            raise UsageError(f"{teacher.class_name}: an encoder with its tokenizer expected")
        if teacher.dimensions.pooling != "mean":
            raise UsageError(f"pooling {teacher.dimensions.pooling}: vectors are distilled as means over tokens only")
        self.student, self._architecture, self._source = teacher, teacher.architecture, teacher.directory
        self._d, self._metric = teacher.dimensions, metric
        self._kind = {"problem_type": read_json(self._source / "config.json").get("problem_type")}
        self._functions = functions_of(preset_of(preset).style)
        self._teacher = {name: t.to(device) for name, t in teacher.tensors.items()}
        tokenizer, most = teacher.tokenizer(), self._d.positions
        self._train = Widths(tokenizer, train, min(longest, most), batch, seed, device)
        self._valid = Widths(tokenizer, valid, most, batch, seed, device) if valid else None
        self._calibration = self._train.sample(calibrated)
        self.identity: dict[str, Any] = {"train": _digest(train), "valid": _digest(valid)}

    def batch(self, step: int) -> Batch:
        return self._train.batch(step)

    def teacher(self, batch: Batch) -> Given:
        return self._floats(self._teacher, batch, EXACT, silent)

    def in_floats(self, tensors: Tensors, batch: Batch, observe: Observe) -> Given:
        return self._floats(tensors, batch, self._functions, observe)

    def _floats(self, tensors: Tensors, batch: Batch, functions: Functions, observe: Observe) -> Shown:
        kept: dict[str, list[Tensor]] = {"norm2.out": [], "context": []}

        def both(layer: int, name: str, x: Tensor) -> None:
            if name in kept:
                kept[name].append(x.flatten(0, 1))
            observe(layer, name, x)

        hidden = forward(tensors, self._d, batch, both, functions=functions)
        output = self._architecture.head.floats(tensors, hidden, silent)
        return Shown(output.flatten(0, -2), kept["norm2.out"], kept["context"])

    def program(self, description: Description) -> Model:
        return Student(description)

    def layers_loss(self, got: Given, wanted: Given, batch: Batch) -> Tensor:
        return layers_loss(got, wanted, batch.mask.reshape(-1, 1).float())

    def output_loss(self, got: Given, wanted: Given, batch: Batch) -> Tensor:
        """Of classes: soft cross-entropy. Of one score: mean squares. Of hidden states: mean squares of their means
        over a text's tokens, over those of the teacher's."""
        found, true = answers(got, batch), answers(wanted, batch)
        if len(wanted.output) > len(true):
            return (found - true).square().sum() / true.square().sum()
        return F.mse_loss(found, true) if true.shape[1] == 1 else soft_cross_entropy(found, true)

    def seen(self, tensors: Tensors) -> Seen:
        return self._architecture.seen(tensors, self._d, self._calibration, self._functions)

    def ranges(self, tensors: Tensors, seen: Seen) -> Ranges:
        return self._architecture.ranges(tensors, self._d, seen)

    def arranged(self, tensors: Tensors, orders: list[Tensor]) -> Tensors:
        return arranged(tensors, orders)

    def measure(self, model: Model, tensors: Tensors, watch: Watch | None) -> float:
        """The metric, or the loss to the teacher; 0 without texts."""
        if self._valid is None:
            return 0.0
        outputs, places, losses = [], [], []
        with torch.no_grad():
            for done, (batch, place) in enumerate(self._valid.everything(), 1):
                got, real = model(tensors, batch), place >= 0
                if self._metric is None:
                    losses.append(self.output_loss(got, self.teacher(batch), batch))
                outputs.append(answers(got, batch)[real])
                places.append(place[real])
                if watch:
                    watch(done, self._valid.steps)
        if self._metric is None:
            return float(torch.stack(losses).mean())
        return self._metric(torch.cat(outputs)[torch.cat(places).argsort()].cpu())

    def save(self, directory: Path, tensors: Tensors) -> None:
        save_encoder(replace(self.student, tensors=tensors), directory, self._source, **self._kind)


def answers(got: Given, batch: Batch) -> Tensor:
    """One row a text: logits, or the mean of its tokens' hidden states."""
    size, n = batch.shape
    output = got.output.float()
    if len(output) == size:
        return output
    real = batch.mask[..., None].float()
    return (output.reshape(size, n, -1) * real).sum(1) / real.sum(1)


def functions_of(style: Style) -> Functions:
    """What a preset computes, as functions of reals."""
    squares = isinstance(style, Recipe) and style.squares
    return Functions(quad if style.quad else F.gelu, quad_probabilities if squares else probabilities)


def _digest(texts: Sequence[Text]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]

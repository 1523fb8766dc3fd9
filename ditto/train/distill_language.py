"""Distillation of a GPT-2: its program's logits learn to be the teacher's, with a preset's arithmetic in the loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ditto.errors import UsageError
from ditto.models.calibrated import save_calibrated
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, parse
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import forward, logits
from ditto.models.gpt2.weights import arranged
from ditto.models.importer import describe
from ditto.models.tokenizer import Prompts
from ditto.presets import preset_of
from ditto.train.adamw import AdamW, learning_rate
from ditto.train.language_student import LanguageStudent
from ditto.train.perplexity import cross_entropy, windows
from ditto.train.run import Position, Watch, digest
from ditto.train.text import Order

Tensor = torch.Tensor
BETAS, DECAY = (0.9, 0.999), 1e-4
WARM = 10  # one of so many steps warms up


@dataclass(frozen=True)
class Settings:
    """What decides the student, besides teacher and texts. `calibrated`, `validated`: windows of the text to train on
    whose values give ranges, and of the text to validate on."""

    preset: str = "ditto"
    steps: int = 300
    batch: int = 8
    context: int = 128
    lr: float = 1e-4
    seed: int = 0
    check_every: int = 100
    validate_every: int = 300
    calibrated: int = 64
    validated: int = 100


class LanguageDistiller:
    """A `Trainer`: soft cross-entropy to the teacher's next-token probabilities, T = 1, at every position.

    A preset that computes Quad has it from the first step on, in the place of the teacher's GELU. At the beginning and
    every `check_every` steps the student is calibrated anew. Raises UsageError.
    """

    def __init__(
        self,
        teacher: Checkpoint,
        tokenizer: Path,
        train: Tensor,
        valid: Tensor,
        settings: Settings,
        device: str = "cpu",
    ) -> None:
        if settings.context > teacher.dimensions.positions:
            raise UsageError(f"context {settings.context}: this model has {teacher.dimensions.positions} positions")
        self.settings, self.device, self._tokenizer = settings, torch.device(device), tokenizer
        self._dimensions = teacher.dimensions
        self._teacher = {name: t.to(self.device) for name, t in teacher.tensors.items()}
        quad = preset_of(settings.preset).style.quad
        dimensions = self._dimensions.model_copy(update={"activation": "quad"}) if quad else self._dimensions
        self._checkpoint = replace(teacher, dimensions=dimensions)
        self.order, self.valid = Order(train, settings.context, settings.seed), valid
        self._calibration = windows(train, settings.context)[0][: settings.calibrated].long()
        self.identity = asdict(settings) | {"model": self._dimensions.model_dump(mode="json")}
        self.identity |= {"weights": digest(teacher.tensors.values())}
        self.identity |= {"train": digest([train]), "valid": digest([valid])}
        self.steps, self.validate_every = settings.steps, settings.validate_every
        self._adamw = AdamW(teacher.tensors, self.device, BETAS, DECAY)
        self.at = Position()
        self.description: Description | None = None
        self._student: LanguageStudent | None = None
        self._checked = -1

    def calibrate(self) -> tuple[Description, dict[str, Tensor]]:
        """By the weights as they are: the description, and the weights in its order, on the processor."""
        tensors = {name: t.detach().cpu() for name, t in self._adamw.tensors.items()}
        batches = [Prompts(ids[None], [len(ids)]) for ids in self._calibration]
        description, found = describe(
            replace(self._checkpoint, tensors=tensors), "distilled", [*batches], self.settings.preset
        )
        return description, found.tensors

    def check(self) -> None:
        """Calibrate; neurons, and their moments, go in the order that the description speaks of."""
        self.description, tensors = self.calibrate()
        orders = []
        for i in range(self._dimensions.layers):  # found again by their biases and weights, which differ
            name = f"h.{i}.mlp.c_fc.weight"
            before, after = self._adamw.tensors[name].detach().cpu(), tensors[name]
            orders.append(_order(before, after).to(self.device))
        self._adamw.rearrange(lambda named: arranged(named, orders))
        self._student = LanguageStudent(self.description)
        self._checked = self.at.step

    def step(self) -> float:
        settings, at = self.settings, self.at
        if at.step % settings.check_every == 0 and self._checked != at.step:
            self.check()
        assert self._student is not None
        ids, _ = self.order.batch(at.step * settings.batch, settings.batch)
        ids = ids.to(self.device)
        with torch.no_grad():
            wanted = logits(self._teacher, forward(self._teacher, self._dimensions, ids)).log_softmax(-1)
        got = self._student(self._adamw.tensors, ids).log_softmax(-1)
        loss = F.kl_div(got.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
        rate = learning_rate(at.step, self.steps, settings.lr, self.steps // WARM, "linear")
        return self._adamw.update(loss, rate, at)

    def validate(self, watch: Watch | None = None) -> float:
        """The loss of the student's program on windows of the text to validate on."""
        if self._student is None:
            self.check()
        student = self._student
        assert student is not None
        ids = self.valid[: self.settings.validated * self.settings.context + 1]
        tensors = {name: t.detach() for name, t in self._adamw.tensors.items()}
        return cross_entropy(
            lambda rows: student(tensors, rows.to(self.device)), ids, self.settings.context, watch=watch
        )[0]

    def better(self, new: float, old: float) -> bool:
        return new < old

    def state(self) -> dict[str, Tensor]:
        found = self._adamw.state() | {"checked": torch.tensor(self._checked)}
        if self.description:
            found["description"] = torch.tensor(list(self.description.text().encode()), dtype=torch.uint8)
        return found

    def restore(self, state: dict[str, Tensor], at: Position) -> None:
        self._adamw.restore(state, at.step)
        self.at, self._checked = at, int(state["checked"])
        if "description" in state:
            self.description = parse(bytes(state["description"].tolist()).decode())
            self._student = LanguageStudent(self.description)

    def write(self, directory: Path) -> None:
        """The student as a checkpoint, with the ranges that its present weights have."""
        description, tensors = self.calibrate()
        save_gpt2(directory, self._checkpoint.dimensions, tensors, self._tokenizer)
        save_calibrated(directory, description, tensors)


def _order(before: Tensor, after: Tensor) -> Tensor:
    """Columns of `before` as `after` has them: [columns]."""
    places = {column.numpy().tobytes(): i for i, column in enumerate(before.t().contiguous())}
    return torch.tensor([places[column.numpy().tobytes()] for column in after.t().contiguous()])

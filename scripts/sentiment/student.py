"""A classifier that learns from a teacher's answers as well as from labels, int8 rounding in the loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from ditto.models.checkpoint import Checkpoint
from ditto.models.compact import rounded
from ditto.models.encoder.floats import forward
from ditto.models.ranges import silent
from ditto.models.tokenizer import Batch
from ditto.train.adamw import learning_rate
from ditto.train.batches import Labelled
from ditto.train.labelled import WARM, LabelTrainer, Settings, dropping
from ditto.train.objective import Objective
from ditto.train.run import digest
from ditto.train.seeds import generator

Tensor = torch.Tensor


@dataclass(frozen=True)
class How:
    """`soft`: weight of the teacher's answers at `temperature`; the labels have the rest. `masked`: the part of the
    tokens that both read as [MASK], whose id is `mask`. `int8`: the part of the steps, the last ones, in which matrices
    are rounded as the shipped checkpoint has them. `bf16`: products in bfloat16, everything else in fp32."""

    soft: float = 0.9
    temperature: float = 2.0
    masked: float = 0.1
    mask: int = 0
    int8: float = 0.1
    bf16: bool = False


class Imitator(LabelTrainer):
    """A `LabelTrainer` whose loss is soft KL(teacher || student) T^2 + (1 - soft) cross-entropy of the labels.

    Both have one vocabulary; the teacher reads the tokens that the student reads, masks included. Without a teacher,
    labels are all there is. (Hinton et al. 2015, Distilling the Knowledge in a Neural Network.)
    """

    def __init__(
        self, checkpoint: Checkpoint, teacher: Checkpoint | None, objective: Objective, train: Labelled,
        valid: Labelled, settings: Settings, how: How, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(checkpoint, objective, train, valid, settings, device)
        self._how, self._teacher = how, teacher
        self._wise = {name: t.to(self.device) for name, t in teacher.tensors.items()} if teacher else {}
        self.identity |= asdict(how) | {"teacher": digest(t for _, t in sorted(self._wise.items()))}

    def step(self) -> float:
        """One update.

        1. Tokens are hidden, by seed and step.
        2. The teacher answers.
        3. The student does, its matrices rounded towards the end.
        """
        settings, how, at = self.settings, self._how, self.at
        batch, labels = self.train.batch(self.order.at(at.step), self.device)
        batch.ids = self._hidden(batch)  # 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=how.bf16):
            loss = torch.zeros((), device=self.device)
            wanted = self._wanted(batch)  # 2
            logits = self._logits(batch)  # 3
            if wanted is not None:
                t = how.temperature
                target = (wanted / t).softmax(-1)
                loss = how.soft * t * t * F.kl_div((logits / t).log_softmax(-1), target, reduction="batchmean")
            loss = loss + (1 - how.soft if self._teacher else 1.0) * self.objective.loss(logits, labels)
        rate = learning_rate(at.step, self.steps, settings.lr, self.steps // WARM, settings.schedule)
        return self._adamw.update(loss, rate, at)

    def _wanted(self, batch: Batch) -> Tensor | None:
        if self._teacher is None:
            return None
        with torch.no_grad():
            hidden = forward(self._wise, self._teacher.dimensions, batch)
            return self._architecture.head.floats(self._wise, hidden, silent).float()

    def _logits(self, batch: Batch) -> Tensor:
        settings, step, tensors = self.settings, self.at.step, self.tensors
        if step >= (1 - self._how.int8) * self.steps:
            tensors = {name: _through(t) if t.dim() == 2 else t for name, t in tensors.items()}
        drop = dropping(settings.dropout, generator(settings.seed, f"step {step}", self.device))
        hidden = forward(tensors, self.checkpoint.dimensions, batch, drop=drop)
        return self._architecture.head.floats(tensors, hidden, silent).float()

    def _hidden(self, batch: Batch) -> Tensor:
        """Some tokens of the text become [MASK]; neither the first nor padding do."""
        random = generator(self.settings.seed, f"masks {self.at.step}")
        chosen = (torch.rand(batch.ids.shape, generator=random) < self._how.masked).to(self.device) & batch.mask.bool()
        chosen[:, 0] = False
        return batch.ids.masked_fill(chosen, self._how.mask)

    def _kind(self) -> dict[str, str]:
        changed: dict[str, object] = {"num_hidden_layers": self.checkpoint.dimensions.layers}
        return super()._kind() | changed  # type: ignore[return-value]


def _through(matrix: Tensor) -> Tensor:
    """Rounded to int8 as the checkpoint will be; the gradient goes through."""
    return matrix + (rounded(matrix) - matrix).detach()

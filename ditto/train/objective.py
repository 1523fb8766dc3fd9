"""What a labelled task asks of an encoder: its answers, their loss, their metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ditto.models.tokenizer import Batch
from ditto.train.data import Task
from ditto.train.metrics import metric

Tensor = torch.Tensor
Pooling = Literal["cls", "mean"]
SCORE = "score"  # the name of what is no class


@dataclass(frozen=True)
class Objective:
    """A task and where its answer stands.

    `cls`: a head reads the first token of a text, or of a pair as one sequence: a logit for each label, or a score.
    `mean`: a pair's texts are two rows, all first ones before all second ones; the answer is the cosine of their
    mean-pooled hidden states, times the highest score.
    """

    task: Task
    pooling: Pooling = "cls"

    @property
    def head(self) -> str:
        """What follows the family's name in the class of such a checkpoint."""
        return "Model" if self.pooling == "mean" else "ForSequenceClassification"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the head's outputs."""
        if self.pooling == "mean":
            return ()
        return self.task.labels or (SCORE,)

    def answers(self, output: Tensor, batch: Batch) -> Tensor:
        """[examples, labels] or, for a score, [examples, 1] of the head's logits [B, labels] or hidden states
        [B, N, H]."""
        if self.pooling == "cls":
            return output
        weights = batch.mask[..., None].to(output.dtype)
        pooled = (output * weights).sum(1) / weights.sum(1)
        first, second = pooled.chunk(2)
        return self.task.most * F.cosine_similarity(first, second)[:, None]

    def loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Mean over the examples: cross-entropy, or the squared error as a part of the highest score."""
        if self.task.labels:
            return F.cross_entropy(answers, labels.long())
        return F.mse_loss(answers[:, 0] / self.task.most, labels / self.task.most)

    def metric(self, answers: Tensor, labels: Tensor) -> float:
        """The task's; more is better."""
        return metric(self.task.metric, answers, labels)

"""What a model is measured on: examples with labels, and how its outputs are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from ditto.models.architecture import Texts

Tensor = torch.Tensor


class Difference(NamedTuple):
    """Of two modes on one example: the part of the answers that differ, and the largest difference of two outputs."""

    differing: float
    largest: float


class Subject(Protocol):
    """Examples, numbered as in their file."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is reported, the first one above all."""

    @property
    def size(self) -> int:
        """Examples in all."""

    @property
    def digest(self) -> str:
        """Of texts and labels."""

    def label(self, row: int) -> float: ...

    def prepare(self, rows: Sequence[int]) -> None:
        """Before any of these rows is asked. Raises TextTooLong naming the example, UsageError."""

    def width(self, row: int) -> int:
        """The padded length that the servers would learn if it were asked alone."""

    def batch(self, rows: Sequence[int]) -> Texts:
        """These examples as one job."""

    def outputs(self, found: Tensor, rows: Sequence[int]) -> list[list[float]]:
        """What is kept of a job's result, an example each: a logit a label, a score, or nats a token."""

    def differences(self, found: Tensor, reference: Tensor, rows: Sequence[int]) -> list[Difference]:
        """Of two modes' results of one job, an example each."""


def chosen(size: int, limit: int | None, seed: int) -> list[int]:
    """The first `limit` examples of a seeded shuffle, since files may be sorted; all of them without a limit. A larger
    limit adds to what a smaller one chose."""
    rows = list(range(size))
    random.Random(seed).shuffle(rows)
    return rows[:limit]


def jobs_of(subject: Subject, rows: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    """Rows in jobs of at most `batch` examples.

    1. Rows of one padded width share jobs, so that an example is padded as if it were asked alone. Widths are those of
       every request (`padded_width`): no job shows the servers more of a length than a user's would.
    2. Jobs come in a seeded order: what is done so far is a sample of all lengths.
    """
    by_width: dict[int, list[int]] = {}
    for row in sorted(rows):
        by_width.setdefault(subject.width(row), []).append(row)  # 1
    jobs = [group[at : at + batch] for group in by_width.values() for at in range(0, len(group), batch)]
    random.Random(seed).shuffle(jobs)  # 2
    return jobs

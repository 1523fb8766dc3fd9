"""What a compiled program asks of a processor: steps by kind, each with an amount."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from ditto.engine.program import Program, Step
from ditto.ops import Matmul, MatmulWeight
from ditto.ops.base import Op
from ditto.ring import carrier


class Kind(NamedTuple):
    """A class of operations whose cost is one rate: its name, and the bytes of the integers that carry its ring."""

    op: str
    carrier: int

    def __str__(self) -> str:
        return f"{self.op}/{self.carrier}"


@dataclass
class Work:
    """Of several steps: how many of each kind, and their amounts in sum.

    An amount is multiplications for a matrix product; for every other operation the bytes that it touches: inputs and
    outputs in carriers, masks of its own openings, and what the dealer shares.
    """

    steps: Counter[Kind] = field(default_factory=Counter)
    amounts: Counter[Kind] = field(default_factory=Counter)

    def add(self, step: Step) -> None:
        kind = kind_of(step.op)
        self.steps[kind] += 1
        self.amounts[kind] += amount_of(step)


def ring_of(op: Op) -> int:
    """The ring bits of what it makes; 64 where it does not say."""
    return next((bits for name in ("out", "bits") if isinstance(bits := getattr(op, name, None), int)), 64)


def kind_of(op: Op) -> Kind:
    return Kind(type(op).__name__, carrier(ring_of(op)).itemsize)


def amount_of(step: Step) -> int:
    op = step.op
    if isinstance(op, MatmulWeight):
        return op.rows * op.inner * op.columns
    if isinstance(op, Matmul):
        return math.prod(op.shape) * op.left[-1]
    cost = op.cost()
    return step.touched + cost.online + cost.dealer


def work_of(program: Program) -> dict[tuple[int, str], Work]:
    """By layer and operation, as ledgers have them."""
    found: dict[tuple[int, str], Work] = {}
    for step in program.steps:
        found.setdefault((step.layer, step.label), Work()).add(step)
    return found

"""A program with gradients: the plain interpreter's integers, and beside them the derivatives of smooth functions.

For every step y = f(x) + (plain(x) - f(x)) with the bracket taken as a constant: values are those of the protocol bit
for bit, wrap-around included, gradients those of f, which each operation states (`Op.smooth`). (Straight-through
estimation: Bengio, Leonard and Courville 2013; for quantization in the loop, Jacob et al. 2018.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ditto.engine.program import Program, Step, Wire
from ditto.ops import MatmulWeight, Open, Together
from ditto.ops.base import Rearrangement
from ditto.ring import signed

Tensor = torch.Tensor


@dataclass
class Traced:
    """A wire's signed integers (int64), and the same numbers as floats that carry the gradient."""

    value: Tensor
    real: Tensor

    @classmethod
    def constant(cls, value: Tensor) -> Traced:
        return cls(value, value.to(torch.float32))

    @classmethod
    def encoded(cls, x: Tensor, ring: int, frac: int) -> Traced:
        """Reals as `ditto.ring.fixedpoint.encode` has them, but that what does not fit wraps; the slope is 2^frac."""
        scaled = x.double() * 2.0**frac
        value = signed(torch.floor(scaled.detach() + 0.5).to(torch.int64), ring)
        return cls(value, _at(value, scaled.float()))

    def decoded(self, wire: Wire) -> Tensor:
        """The reals, float64."""
        return _at(self.value, self.real.double()) / 2.0**wire.frac


@dataclass
class Rows:
    """One-hot rows, several ones in each, by their places: [count, ones]."""

    places: Tensor


def run_differentiable(
    program: Program, inputs: Mapping[str, Traced | Rows], weights: Mapping[str, Traced]
) -> tuple[dict[str, Traced], dict[str, Traced]]:
    """Outputs and taps of a program of one stage, on the device of its inputs. Only what needs a gradient is kept."""
    values: dict[str, Traced | Rows] = {**inputs, **weights}
    wanted = {wire.name for wire in (*program.outputs.values(), *program.taps.values())}
    frees = program.frees([*program.outputs.values(), *program.taps.values()])
    for step, done in zip(program.steps, frees, strict=True):
        values.update(zip(step.outputs, _ran(step, [values[name] for name in step.inputs]), strict=True))
        for name in done:
            del values[name]
    found = {name: value for name, value in values.items() if name in wanted and isinstance(value, Traced)}
    return tuple({name: found[wire.name] for name, wire in wires.items()} for wires in (program.outputs, program.taps))  # type: ignore[return-value]


def _ran(step: Step, x: list[Traced | Rows]) -> list[Traced | Rows]:
    op = step.op
    if isinstance(op, Open | Together):
        return x
    if x and isinstance(x[0], Rows):
        return [_looked_up(op, x[0], x[1])]
    traced = [a for a in x if isinstance(a, Traced)]
    plain = op.plain(*(a.value for a in traced))
    if not any(a.real.requires_grad for a in traced):
        return [Traced.constant(y) for y in plain]
    smooth = op.smooth(*(a.real for a in traced))
    return [
        Traced.constant(y) if f is None else Traced(y, f if isinstance(op, Rearrangement) else _at(y, f))
        for y, f in zip(plain, smooth, strict=True)
    ]


def _looked_up(op: object, rows: Rows, table: Traced | Rows) -> Traced:
    if not isinstance(op, MatmulWeight) or not isinstance(table, Traced):
        raise TypeError(f"{type(op).__name__} of one-hot rows")
    value = signed(table.value[rows.places].sum(1), op.bits)
    return Traced(value, _at(value, torch.nn.functional.embedding(rows.places, table.real).sum(1)))


def _at(value: Tensor, real: Tensor) -> Tensor:
    """`value` with the gradient of `real`."""
    return value.to(real.dtype) + (real - real.detach())

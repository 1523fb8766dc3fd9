"""The plain interpreter with the errors that shares make: what an answer under MPC differs by, without shares.

Truncations round up or down at random; any other operation that is not exact runs on masks and correlations, as one
party that holds all of both. The random numbers of a layer depend on nothing but its place: two programs that differ in
one layer meet the same ones everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ditto.engine.program import Program, Step
from ditto.ops import HighBits, Masked, Op, TruncateReduce
from ditto.planning.work import ring_of
from ditto.ring import signed

Tensor = torch.Tensor
Values = dict[str, Any]  # of wires by name: signed integers, or weights as `ditto.engine.plain.plain_weights` has them
MASKS = 1 << 62


def run_lossy(
    program: Program,
    values: Values,
    seed: int = 1,
    first: int = 0,
    seen: Callable[[Step, list[Any], tuple[Tensor, ...]], None] | None = None,
    entered: Callable[[int, Values], None] | None = None,
) -> dict[str, Tensor]:
    """Run a program from layer `first` on; returns its outputs, signed.

    `values`: inputs and weights, or of a later layer all that it and those after it read. `seen` is shown every step,
    its inputs and outputs; `entered` every layer's number and the values that are there when it begins, which it must
    copy.
    """
    values = dict(values)
    frees = program.frees(program.outputs.values())
    at, generator = first - 1, torch.Generator()
    for step, done in zip(program.steps, frees, strict=True):
        if step.layer < first:
            continue
        if step.layer != at:
            at = step.layer
            generator.manual_seed(1000 * seed + at)
            if entered is not None:
                entered(at, values)
        read = [values[name] for name in step.inputs]
        outputs = lossy_step(step.op, read, generator)
        if seen is not None:
            seen(step, read, outputs)
        values.update(zip(step.outputs, outputs, strict=True))
        for name in done:
            if name not in program.weights:  # another run may need them
                del values[name]
    return {name: values[wire.name] for name, wire in program.outputs.items()}


def lossy_step(op: Op, read: list[Any], generator: torch.Generator) -> tuple[Tensor, ...]:
    """One operation on what it reads."""
    if isinstance(op, TruncateReduce | HighBits):
        cut = op.t if isinstance(op, TruncateReduce) else op.shift
        lost = torch.randint(0, 1 << cut, read[0].shape, generator=generator)
        return (signed(signed(read[0] + lost, op.bits) >> cut, op.out),)
    if type(op).ulp is not Op.ulp and not op.opens():  # how large it is takes long to tell
        masks = [torch.randint(-MASKS, MASKS, x.shape, generator=generator) for x in read]
        opened = [Masked(x + mask, mask) for x, mask in zip(read, masks, strict=True)]
        drawn = {
            name: torch.randint(-MASKS, MASKS, (2, *of.shape), generator=generator) for name, of in op.drawn().items()
        }
        k = op.correlate(*masks, *drawn.values())
        outputs = op.online(_Alone(0), {**k, **{name: both[0] for name, both in drawn.items()}}, *opened)
        if drawn:  # keys: what the other one has by its own adds up with it
            others = op.online(_Alone(1), {**k, **{name: both[1] for name, both in drawn.items()}}, *opened)
            outputs = tuple(x + y for x, y in zip(outputs, others, strict=True))
        return tuple(signed(y, ring_of(op)) for y in outputs)
    return op.plain(*read)


class _Alone:
    """A party that holds every share whole, or a key beside the other one's, and what it asks nobody for."""

    def __init__(self, party: int) -> None:
        self.party = party

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"an operation that opens nothing asked for {name}")

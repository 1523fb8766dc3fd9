"""The plain interpreter: a program on the signed integers that its shares stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ditto.engine.program import Program, Step
from ditto.ring import cast, signed
from ditto.ring.kernels import RingMatrix

Tensor = torch.Tensor


def plain_weights(program: Program, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Weights as `run_plain` takes them, matrices prepared for products: made once, used for many runs."""
    return {
        name: RingMatrix(cast(weights[name], wire.ring), wire.ring)
        if wire.held == "matrix"
        else signed(weights[name], wire.ring)
        for name, wire in program.weights.items()
    }


def run_plain(
    program: Program,
    inputs: dict[str, Tensor],
    weights: dict[str, Any],
    carried: dict[str, Tensor] | None = None,
    seen: Callable[[Step, list[Any]], None] | None = None,
) -> dict[str, Tensor]:
    """Run the program on the signed integers themselves, wrap-around included. Returns signed int64 outputs.

    `weights` are ring integers, or what `plain_weights` made of them. `carried` holds what earlier stages kept, and
    takes what this one keeps. `seen` is shown every step and its inputs.
    """
    values: dict[str, Any] = {n: signed(inputs[n], w.ring) for n, w in program.inputs.items()}
    ready = all(isinstance(weights[n], RingMatrix) for n, w in program.weights.items() if w.held == "matrix")
    values |= {n: weights[n] for n in program.weights} if ready else plain_weights(program, weights)
    carried = {} if carried is None else carried
    values |= {n: carried[n] for n in program.carried}
    frees = program.frees([*program.outputs.values(), *program.kept.values()])
    for step, done in zip(program.steps, frees, strict=True):
        read = [values[n] for n in step.inputs]
        if seen is not None:
            seen(step, read)
        outputs = step.op.plain(*read)
        values.update(zip(step.outputs, outputs, strict=True))
        for name in done:
            del values[name]
    carried.update((name, values[wire.name]) for name, wire in program.kept.items())
    return {name: values[wire.name] for name, wire in program.outputs.items()}

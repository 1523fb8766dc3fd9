"""Steps in the order of their rounds: openings that do not wait for each other share one.

The pass reads nothing but the program's data flow, so functions open what they need where they need it. Every process
runs it on the same program and gets the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from ditto.engine.program import Program, Step, Wire
from ditto.ops import Open
from ditto.ops.base import Shape, packed_bytes

Unit = Callable[[Step], Hashable]


def by_layer(step: Step) -> Hashable:
    """What the engine prepares, then runs, as a whole."""
    return step.layer


def scheduled(program: Program, unit: Unit = by_layer) -> Program:
    """The same program with as few openings as its data flow allows: equal results, from fewer rounds and bytes.

    `unit` says what is prepared and run as a whole, at most a layer: nothing moves from one to another.
    1. Steps go, and wires of openings, that neither an output nor a later stage waits for.
    2. A wire that is opened twice is opened once.
    3. The depth of a step, and of each wire of an opening for itself, is the number of openings before it on the
       longest way from the unit's beginning. Steps are sorted by it, otherwise left in their order; the wires that are
       opened at one depth are one opening, after the other steps of that depth.
    Early rather than late: what a step was dealt lies in memory until it runs. An operation that has rounds of its own
    keeps them to itself. So a unit has as many rounds as those have, and its longest way of openings.
    """
    steps: list[Step] = []
    same: dict[str, str] = {}
    opened: dict[Hashable, str] = {}
    for _, group in groupby(_needed(program), key=lambda step: (step.layer, unit(step))):  # 1
        steps += _by_depth(list(group), opened, same)
    outputs, kept = _renamed(program.outputs, same), _renamed(program.kept, same)
    return replace(program, steps=steps, outputs=outputs, kept=kept)


def _needed(program: Program) -> list[Step]:
    wanted = {wire.name for wires in (program.outputs, program.kept) for wire in wires.values()}
    steps = []
    for step in reversed(program.steps):
        found = [i for i, name in enumerate(step.outputs) if name in wanted]
        if not found:
            continue
        if isinstance(step.op, Open) and len(found) < len(step.outputs):
            inputs, outputs = (tuple(names[i] for i in found) for names in (step.inputs, step.outputs))
            step = replace(step, op=Open(tuple(step.op.wires[i] for i in found)), inputs=inputs, outputs=outputs)
        wanted.update(step.inputs)
        steps.append(step)
    return steps[::-1]


class _Opening(NamedTuple):
    """One wire's."""

    of: tuple[Shape, int]
    wire: str
    opened: str
    label: str


def _by_depth(steps: list[Step], opened: dict[Hashable, str], same: dict[str, str]) -> list[Step]:
    """One unit's steps. `opened`: by wire, what its opening is called; `same`: what else it was to be called."""
    ready: dict[str, int] = {}  # by wire, how many openings before it; what enters from outside has none
    local: dict[int, list[Step]] = {}
    openings: dict[int, list[_Opening]] = {}
    for step in steps:
        if not same.keys().isdisjoint(step.inputs):
            step = replace(step, inputs=tuple(same.get(name, name) for name in step.inputs))
        if isinstance(step.op, Open):
            for opening in map(_Opening, step.op.wires, step.inputs, step.outputs, [step.label] * len(step.inputs)):
                before = opened.setdefault(opening[:2], opening.opened)
                if before != opening.opened:  # 2
                    same[opening.opened] = before
                    continue
                depth = ready.get(opening.wire, 0)
                ready[opening.opened] = depth + 1
                openings.setdefault(depth, []).append(opening)
        else:
            depth = max([ready.get(name, 0) for name in step.inputs], default=0)
            for name in step.outputs:
                ready[name] = depth
            local.setdefault(depth, []).append(step)
    ordered: list[Step] = []
    for depth in sorted(local.keys() | openings.keys()):  # 3
        ordered += local.get(depth, [])
        if depth in openings:
            ordered.append(_shared(openings[depth], steps[0].layer))
    return ordered


def _shared(openings: list[_Opening], layer: int) -> Step:
    """All of them as one, under the label of the one that sends most (of equals the first)."""
    of, wires, opened, _ = zip(*openings, strict=True)
    return Step(Open(of), wires, opened, layer, max(openings, key=lambda opening: packed_bytes(*opening.of)).label)


def _renamed(wires: dict[str, Wire], same: dict[str, str]) -> dict[str, Wire]:
    return {name: replace(wire, name=same.get(wire.name, wire.name)) for name, wire in wires.items()}

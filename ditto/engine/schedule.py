"""Steps in the order of their rounds: openings that do not wait for each other share one.

The pass reads nothing but the program's data flow, so functions open what they need where they need it. Every process
runs it on the same program and gets the same one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

from ditto.engine.program import Program, Step, Wire
from ditto.ops import Begin, BitRounds, Open, Together
from ditto.ops.base import Shape, packed_bytes
from ditto.ring import carrier_bytes

Unit = Callable[[Step], Hashable]


def by_layer(step: Step) -> Hashable:
    """What the engine prepares, then runs, as a whole."""
    return step.layer


def scheduled(program: Program, unit: Unit = by_layer) -> Program:
    """The same program with as few openings as its data flow allows: equal results, from fewer rounds and bytes.

    `unit` says what is prepared and run as a whole, at most a layer: nothing moves from one to another.
    1. Steps go, and wires of openings, that neither an output nor a later stage waits for.
    2. A wire that is opened twice is opened once.
    3. The depth of a step, and of each wire of an opening for itself, is the number of rounds before it on the longest
       way from the unit's beginning. Steps are sorted by it, and what is opened at one depth shares a round, after the
       other steps of that depth: wires, and what comparisons open on their way.
    4. Of one round those wires go first that most other rounds wait for, then those that are made first; the steps
       after it are sorted by the last wire that they read: they compute while others arrive (`ditto.engine.opening`).
    Early rather than late: what a step was dealt lies in memory until it runs. A unit has as many rounds as its
    longest way.
    """
    steps: list[Step] = []
    same: dict[str, str] = {}
    opened: dict[Hashable, str] = {}
    for _, group in groupby(_needed(program), key=lambda step: (step.layer, unit(step))):  # 1
        steps += _by_depth(list(group), opened, same)
    outputs, kept, taps = (_renamed(wires, same) for wires in (program.outputs, program.kept, program.taps))
    return replace(program, steps=steps, outputs=outputs, kept=kept, taps=taps)


def _needed(program: Program) -> list[Step]:
    wanted = {wire.name for wires in (program.outputs, program.kept) for wire in wires.values()}
    steps = []
    for step in reversed(program.steps):
        found = [i for i, name in enumerate(step.outputs) if name in wanted]
        if not found:
            continue
        if isinstance(step.op, Open) and len(found) < len(step.outputs):
            inputs, outputs = (tuple(names[i] for i in found) for names in (step.inputs, step.outputs))
            wires = tuple(step.op.wires[i] for i in found)
            step = replace(step, op=Open(wires), inputs=inputs, outputs=outputs, touched=_touched(wires))
        wanted.update(step.inputs)
        steps.append(step)
    return steps[::-1]


class _Opening(NamedTuple):
    """One wire's."""

    of: tuple[Shape, int]
    wire: str
    opened: str
    label: str

    @property
    def sends(self) -> int:
        return packed_bytes(*self.of)


class _Round(NamedTuple):
    """One of an operation that has several."""

    step: Step
    op: BitRounds
    number: int

    def wire(self, number: int) -> str:
        """Between rounds the operation has its output's name, and a number; after the last one the output is there."""
        (output,) = self.step.outputs
        return output if number == len(self.op.opens()) else f"{output}.{number}"

    @property
    def label(self) -> str:
        return self.step.label

    @property
    def sends(self) -> int:
        return sum(of.nbytes for of in self.op.opens()[self.number].values())


@dataclass
class _Depth:
    """What runs between two rounds, and what may be opened in the second one."""

    local: list[Step] = field(default_factory=list)
    openings: list[_Opening] = field(default_factory=list)
    rounds: list[_Round] = field(default_factory=list)


def _by_depth(steps: list[Step], opened: dict[Hashable, str], same: dict[str, str]) -> list[Step]:
    """One unit's steps. `opened`: by wire, what its opening is called; `same`: what else it was to be called."""
    ready: dict[str, int] = {}  # by wire, how many rounds before it; what enters from outside has none
    depths: defaultdict[int, _Depth] = defaultdict(_Depth)
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
                depths[depth].openings.append(opening)
            continue
        depth = max([ready.get(name, 0) for name in step.inputs], default=0)
        rounds = 0
        if isinstance(step.op, BitRounds):
            rounds = len(step.op.opens())
            for number in range(rounds):
                depths[depth + number].rounds.append(_Round(step, step.op, number))
        else:
            depths[depth].local.append(step)
        for name in step.outputs:
            ready[name] = depth + rounds
    return _ordered([depths[depth] for depth in sorted(depths)], steps[0].layer)  # 3


def _ordered(depths: list[_Depth], layer: int) -> list[Step]:
    """An operation that shares none of its rounds stays whole."""
    shares = {id(r.step) for depth in depths if len(depth.rounds) > 1 or depth.openings for r in depth.rounds}
    ordered: list[Step] = []
    late, arrived = _late(depths), dict[str, int]()  # the latter by wire of the last opening: its place
    end = len(depths)
    for depth in depths:
        begin = [r for r in depth.rounds if not r.number]
        local = [*depth.local, *(_begin(r) for r in begin if id(r.step) in shares)]
        local = _as_it_arrives(local, arrived, late, end)
        rounds = [r for r in depth.rounds if id(r.step) in shares]
        ordered += [*local, *(r.step for r in begin if id(r.step) not in shares)]
        made = {name: place for place, step in enumerate(local) for name in step.outputs}
        openings = sorted(depth.openings, key=lambda o: (late.get(o.opened, end), made.get(o.wire, -1)))
        if openings or rounds:
            ordered.append(_shared(openings, rounds, layer))
        arrived = {opening.opened: place for place, opening in enumerate(openings)}
    return ordered


def _late(depths: list[_Depth]) -> dict[str, int]:
    """By wire the depth at which it has to be there, if no round is to be added; those that are not named may come at
    the unit's end."""
    late: dict[str, int] = {}

    def needs(wires: Iterable[str], made: Iterable[str], rounds: int) -> None:
        at = min((late.get(name, len(depths)) for name in made), default=len(depths)) - rounds
        late.update((name, min(late.get(name, at), at)) for name in wires)

    for depth in reversed(depths):
        for opening in depth.openings:
            needs([opening.wire], [opening.opened], 1)
        for r in depth.rounds:
            if not r.number:
                needs(r.step.inputs, r.step.outputs, len(r.op.opens()))
        for step in reversed(depth.local):
            needs(step.inputs, step.outputs, 0)
    return late


def _as_it_arrives(local: list[Step], arrived: dict[str, int], late: dict[str, int], end: int) -> list[Step]:
    """Steps in the order in which what they read arrives, those first that others wait for, else as they were."""
    place = dict(arrived)
    keys: dict[int, tuple[int, int]] = {}
    for number, step in enumerate(local):
        at = max((place.get(name, -1) for name in step.inputs), default=-1)
        place.update(dict.fromkeys(step.outputs, at))
        keys[number] = at, min((late.get(name, end) for name in step.outputs), default=end)
    return [local[number] for number in sorted(keys, key=lambda number: keys[number])]


def _begin(first: _Round) -> Step:
    return replace(first.step, op=Begin(first.op), outputs=(first.wire(0),))


def _shared(openings: list[_Opening], rounds: list[_Round], layer: int) -> Step:
    """All of them as one, under the label of the one that sends most (of equals the first)."""
    wires = tuple(opening.of for opening in openings)
    op = Together(wires, tuple((r.op, r.number) for r in rounds)) if rounds else Open(wires)
    inputs = (*(opening.wire for opening in openings), *(r.wire(r.number) for r in rounds))
    outputs = (*(opening.opened for opening in openings), *(r.wire(r.number + 1) for r in rounds))
    parts: list[_Opening | _Round] = [*openings, *rounds]
    largest = max(parts, key=lambda part: part.sends)
    touched = _touched(wires) + sum(r.step.touched for r in rounds)
    return Step(op, inputs, outputs, layer, largest.label, touched)


def _touched(wires: Iterable[tuple[Shape, int]]) -> int:
    """Bytes in carriers, before and after their opening."""
    return sum(2 * carrier_bytes(shape, ring) for shape, ring in wires)


def _renamed(wires: dict[str, Wire], same: dict[str, str]) -> dict[str, Wire]:
    return {name: replace(wire, name=same.get(wire.name, wire.name)) for name, wire in wires.items()}

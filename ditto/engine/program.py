"""A model as a typed list of steps by layer, compiled once; dealer, parties and the plain interpreter run it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ditto.errors import RangeError
from ditto.ops import (
    Add,
    Affine,
    Cost,
    Extend,
    Guard,
    HighBits,
    Join,
    Matmul,
    MatmulWeight,
    Op,
    Open,
    Product,
    Product3,
    Random,
    Sum,
    Triangle,
    TruncateReduce,
    Untriangle,
    View,
)
from ditto.ops.base import Shape, packed_bytes
from ditto.ops.guard import KEY, PARTS
from ditto.ops.product import broadcast
from ditto.ring import carrier_bytes

PART = ", part "  # between a layer's name and the number of a part of it, from the second on
GUARD = "guard"  # the output that says, layer by layer, whether values left their zones
ROOM = 3  # sixteenths of a ring outside a zone: with fewer a guard finds too little
LEVELS = 4  # rings, each twice the one before, on which few values are watched
WATCHED = 32  # bits: the widest ring that is watched as a whole


@dataclass(frozen=True)
class Wire:
    """A secret tensor: ring bits, fraction bits, shape and a static bound on |x| (as a real number).

    `held` says how a weight is held: "matrix" (right-hand side of products, fixed mask), "masked" (fixed mask,
    elementwise) or "share" (additive share only).
    """

    name: str
    ring: int
    frac: int
    shape: Shape
    bound: float
    held: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of one packed share."""
        return packed_bytes(self.shape, self.ring)


@dataclass(frozen=True)
class Step:
    """One operation at its place: layer id, operation label for the ledger, names of the wires.

    `touched`: bytes of its inputs and outputs in carriers, for who predicts seconds; no part of what is agreed on.
    """

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: int
    label: str
    touched: int = field(default=0, repr=False, compare=False)


@dataclass
class Program:
    """Steps in order, and the typed wires that enter and leave.

    A layer that holds too much at once is several parts, one after another in `layers` (ditto.engine.parts).
    A job may be several programs in a row, its stages. What one stage leaves to the next by name is in `kept` there
    and in `carried` here; it stays as it is, opened or shared.
    """

    layers: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, Wire] = field(default_factory=dict)
    outputs: dict[str, Wire] = field(default_factory=dict)
    weights: dict[str, Wire] = field(default_factory=dict)
    carried: dict[str, Wire] = field(default_factory=dict)
    kept: dict[str, Wire] = field(default_factory=dict)
    taps: dict[str, Wire] = field(default_factory=dict)  # what who trains looks at; no part of what is agreed on
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each wire that a step makes, in its carrier
    wires: dict[str, Wire] = field(default_factory=dict)  # that steps make, as they were made: for who reports types

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the parties and the dealer must agree on.

        What it covers is integers and exactly rounded arithmetic on them, alike on every processor
        (docs/decisions/0010).
        """
        wires = [sorted(w.items()) for w in (self.inputs, self.outputs, self.weights, self.carried, self.kept)]
        text = repr((self.layers, self.steps, wires))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def cost(self, layer: int | None = None) -> Cost:
        """What the program states that it costs, in all or for one layer."""
        return sum((s.op.cost() for s in self.steps if layer in (None, s.layer)), Cost())

    @property
    def guarded(self) -> list[str]:
        """The layers that GUARD speaks of, in its order."""
        found = dict.fromkeys(step.layer for step in self.steps if isinstance(step.op, Guard))
        return list(dict.fromkeys(self.layers[i].split(PART)[0] for i in found))

    @cached_property
    def seeded(self) -> tuple[int, ...]:
        """The party that expands its dealt shares from a seed, at each step: whose link from the dealer carried more.

        The other one receives the step's bytes, so that both links carry half to within one operation.
        """
        parties, carried = [], [0, 0]
        for step in self.steps:
            party = int(carried[1] > carried[0])
            parties.append(party)
            if type(step.op).dealt is not Op.dealt:  # of all others the cost takes longer than the rest of this
                carried[party] += step.op.received(seeded=True)
                carried[1 - party] += step.op.received(seeded=False)
        return tuple(parties)

    def frees(self, keep: Iterable[Wire]) -> list[list[str]]:
        """Names of the wires that no step after each one reads, but for those to keep."""
        last = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        kept = {wire.name for wire in keep}
        return [
            [name for name in dict.fromkeys(step.inputs) if last[name] == i and name not in kept]
            for i, step in enumerate(self.steps)
        ]


Mark = tuple[list[int], tuple[Any, ...]]  # lengths of what only grows, and copies of all else


class Builder:
    """Adds typed steps to a program and refuses bounds that do not fit their ring.

    With `guards`, every wire that is opened with a bound that leaves room in its ring is watched, and the program has
    one more output (see `finish`).
    """

    def __init__(self, guards: bool = False) -> None:
        self.program = Program()
        self._label = ""
        self._count = 0
        self.guards = guards
        self.tries = False  # may what is emitted be forgotten?
        self._key: Wire | None = None
        self._guarded = 0
        self._safe: set[str] = set()  # wires that need no watch: the client's, and what an extension gave
        self._words: list[Wire] = []  # of this layer
        self._sums: list[Wire] = []  # of the layers before

    def layer(self, name: str) -> None:
        self._close_layer()
        self.program.layers.append(name)

    def part(self) -> None:
        """What follows is another part of the layer, prepared when what came before has run; if anything has."""
        layers, steps = self.program.layers, self.program.steps
        if not steps or steps[-1].layer < len(layers) - 1:
            return
        name, _, number = layers[-1].partition(PART)
        layers.append(f"{name}{PART}{int(number or 1) + 1}")

    def mark(self) -> Mark:
        """Where the program is now, for `back_to`."""
        copies = self._safe.copy(), self._words.copy(), self._sums.copy()
        return [len(kept) for kept in self._kept()], (self._count, self._guarded, self._key, *copies)

    def back_to(self, mark: Mark) -> None:
        """Forget all that was emitted since."""
        lengths, (self._count, self._guarded, self._key, *copies) = mark
        for kept, length in zip(self._kept(), lengths, strict=True):
            if isinstance(kept, list):
                del kept[length:]
            else:
                for name in list(itertools.islice(kept, length, None)):
                    del kept[name]
        self._safe, self._words, self._sums = (copy.copy() for copy in copies)

    def _kept(self) -> list[list[Any] | dict[str, Any]]:
        """All that only grows."""
        of = self.program
        wires = of.inputs, of.outputs, of.weights, of.carried, of.kept, of.taps, of.sizes, of.wires
        return [of.layers, of.steps, *wires]

    def finish(self) -> Program:
        """The program, complete. With guards its output GUARD holds a number for each of its `guarded` layers: 0 where
        all values were in their zones, else a random one.

        Factors that nobody knows keep what the parties know of the guards' numbers from who sees one party's view and
        the output. One round.
        """
        self._close_layer()
        if self._sums:
            with self.label("range guard"):
                sums = self.join(*self._sums, dim=0) if len(self._sums) > 1 else self._sums[0]
                sums, factors = self.open(sums, self._random(len(self._sums)))
                self.output(GUARD, self.product(sums, factors))
        return self.program

    def _random(self, count: int) -> Wire:
        return self.emit(Random(count), [], [(64, 0, (count,), 0.0)])[0]

    def key(self) -> Wire:
        """A key that both parties know and nobody else: an opened Random, one for the program."""
        if self._key is None:
            (self._key,) = self.open(self._random(KEY))
        return self._key

    def _close_layer(self) -> None:
        words, self._words = self._words, []
        if words:
            with self.label("range guard"):
                self._sums.append(self.add(*words, bound=0.0) if len(words) > 1 else words[0])

    def watch(self, opened: Wire, low: float, high: float) -> None:
        """Watch an opened wire of few elements closely, from `low` to `high`: on rings that leave between them and the
        zone next to no room, and on some twice as large each."""
        ends = (math.floor(math.ldexp(end, opened.frac)) for end in (low, high))
        least, most = next(ends) - 1, next(ends) + 1
        bits = next(k for k in range(8, 65) if Guard.sixteenths(k, least, most) <= PARTS - ROOM)
        for k in range(bits, min(bits + LEVELS, opened.ring + 1)):
            self._guard(opened, k, least, most)

    def watch_narrow(self, opened: Wire, bound: float) -> None:
        """Watch |x| <= bound on the smallest ring from which x would extend, of an opened wire on a larger one."""
        limit = math.floor(math.ldexp(bound, opened.frac)) + 1
        self._guard(opened, min(limit.bit_length() + 2, opened.ring), -limit, limit)

    def _watch_ring(self, opened: Wire) -> None:
        """Watch an opened wire as far as its ring and its bound go.

        Not watched are what comes from the client, what cannot leave its zone since an extension gave it, wide rings
        (where a value that left its range is far from the ring's end), and what is no number, which has bound 0.
        """
        limit = math.floor(math.ldexp(opened.bound, opened.frac)) + 1  # a truncation may add one
        if opened.bound and opened.ring <= WATCHED and Guard.sixteenths(opened.ring, -limit, limit) <= PARTS - ROOM:
            self._guard(opened, opened.ring, -limit, limit)

    def _guard(self, opened: Wire, bits: int, low: int, high: int) -> None:
        if not self.guards:
            return
        with self.label("range guard"):
            op = Guard(opened.shape, bits, low, high, self._guarded)
            self._words += self.emit(op, [self.key(), opened], [(64, 0, (1,), 0.0)])
        self._guarded += 1

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Name the operation that the steps of this block belong to in the ledger; a block inside may name its own."""
        before, self._label = self._label, name
        try:
            yield
        finally:
            self._label = before

    @property
    def place(self) -> str:
        """Layer and operation that a step emitted now belongs to, for messages."""
        return f"{self.program.layers[-1] if self.program.layers else 'inputs'}, {self._label or 'input'}"

    def input(self, name: str, ring: int, frac: int, shape: Shape, bound: float) -> Wire:
        wire = self.program.inputs[name] = Wire(name, ring, frac, shape, bound)
        self._safe.add(name)
        return wire

    def weight(self, name: str, ring: int, frac: int, shape: Shape, held: str, bound: float = 0.0) -> Wire:
        wire = self.program.weights[name] = Wire(name, ring, frac, shape, bound, held)
        return wire

    def output(self, name: str, wire: Wire) -> None:
        self.program.outputs[name] = wire

    def tap(self, name: str, wire: Wire) -> None:
        """Name a wire for who trains: it stays as it is."""
        self.program.taps[name] = wire

    def carry(self, name: str, ring: int, frac: int, shape: Shape, bound: float) -> Wire:
        """What an earlier stage of the job kept under this name."""
        wire = self.program.carried[name] = Wire(name, ring, frac, shape, bound)
        return wire

    def keep(self, name: str, wire: Wire) -> None:
        """Leave a wire to later stages of the job."""
        self.program.kept[name] = wire

    def emit(self, op: Op, inputs: list[Wire], outputs: list[tuple[int, int, Shape, float]]) -> list[Wire]:
        """Append a step; outputs are (ring, frac, shape, bound). Raises RangeError for a bound that cannot fit."""
        wires = []
        for ring, frac, shape, bound in outputs:
            self._count += 1
            wires.append(Wire(f"w{self._count}", ring, frac, tuple(shape), bound))
        sizes = self.program.sizes
        for wire in wires:
            self.fits(wire, 1)
            sizes[wire.name] = carrier_bytes(wire.shape, wire.ring)
            self.program.wires[wire.name] = wire
        if isinstance(op, Matmul | MatmulWeight) and any(wire.ring < op.bits for wire in inputs):
            raise RangeError(f"{self.place}: a product on {op.bits} bits of what is opened on fewer")
        layer = len(self.program.layers) - 1
        names = tuple(w.name for w in inputs), tuple(w.name for w in wires)
        touched = sum([carrier_bytes(w.shape, w.ring) for w in inputs]) + sum([sizes[name] for name in names[1]])
        self.program.steps.append(Step(op, *names, layer, self._label, touched))
        return wires

    def fits(self, wire: Wire, headroom: int) -> None:
        """Require |x| < 2^(ring - headroom)."""
        if math.ldexp(wire.bound, wire.frac) > math.ldexp(1.0, wire.ring - headroom):
            raise RangeError(
                f"{self.place}: |x| up to {wire.bound:.4g} with {wire.frac} fraction bits does not fit a ring of "
                f"{wire.ring} bits with {headroom} bit(s) of headroom; calibrate on text nearer to yours, "
                "or widen the type"
            )

    # the operations that every program uses, typed

    def open(self, *wires: Wire) -> list[Wire]:
        op = Open(tuple((w.shape, w.ring) for w in wires))
        opened = self.emit(op, list(wires), [(w.ring, w.frac, w.shape, w.bound) for w in wires])
        for before, wire in zip(wires, opened, strict=True):
            if before.name not in self._safe:
                self._watch_ring(wire)
        return opened

    def view(self, x: Wire, slices: tuple[tuple[int, int, int], ...] = (), shape: Shape = (), dims: Shape = ()) -> Wire:
        sliced = list(x.shape)
        for dim, start, stop in slices:
            sliced[dim] = stop - start
        new = tuple(shape) or tuple(sliced)
        if math.prod(new) != math.prod(sliced):
            raise ValueError(f"view of {x.shape} as {new}")
        out = tuple(new[d] for d in dims) if dims else new
        y = self.emit(View(slices, tuple(shape), tuple(dims)), [x], [(x.ring, x.frac, out, x.bound)])[0]
        if x.name in self._safe:
            self._safe.add(y.name)
        return y

    def join(self, *wires: Wire, dim: int) -> Wire:
        """One after another along a dimension: all opened or none, of one type."""
        first = wires[0]
        if any((w.ring, w.frac) != (first.ring, first.frac) for w in wires):
            raise ValueError("join of different types")
        shape = list(first.shape)
        shape[dim] = sum(w.shape[dim] for w in wires)
        bound = max(w.bound for w in wires)
        return self.emit(Join(first.ring, dim), list(wires), [(first.ring, first.frac, tuple(shape), bound)])[0]

    def triangle(self, x: Wire) -> Wire:
        """Of [..., n, n] the entries with column <= row, flat."""
        n = x.shape[-1]
        return self.emit(Triangle(n), [x], [(x.ring, x.frac, (*x.shape[:-2], n * (n + 1) // 2), x.bound)])[0]

    def untriangle(self, x: Wire, n: int, rest: int = 0) -> Wire:
        """The way back, with zeros elsewhere; the last `rest` dimensions ride along."""
        at = len(x.shape) - 1 - rest
        op = Untriangle(n, x.shape[at + 1 :])
        return self.emit(op, [x], [(x.ring, x.frac, (*x.shape[:at], n, n, *op.rest), x.bound)])[0]

    def add(self, *wires: Wire, ring: int = 0, bound: float | None = None) -> Wire:
        """Sum on the smallest ring of the inputs (or `ring`), at the largest number of fraction bits."""
        bits = ring or min(w.ring for w in wires)
        frac = max(w.frac for w in wires)
        op = Add(bits, tuple(frac - w.frac for w in wires))
        limit = sum(w.bound for w in wires) if bound is None else bound
        return self.emit(op, list(wires), [(bits, frac, broadcast(*(w.shape for w in wires)), limit)])[0]

    def affine(self, x: Wire, a: float, b: float, frac: int, bound: float | None = None) -> Wire:
        """a x + b with a encoded at frac - x.frac fraction bits."""
        op = Affine(x.ring, round(math.ldexp(a, frac - x.frac)), round(math.ldexp(b, frac)))
        return self.emit(op, [x], [(x.ring, frac, x.shape, abs(a) * x.bound + abs(b) if bound is None else bound)])[0]

    def high(self, opened: Wire, shift: int, ring: int, bound: float, watched: bool) -> Wire:
        """An opened wire without its lowest `shift` bits, on `ring`: for operations that take no shares of its mask.
        `watched`: as far as its bound goes, by the WATCHED highest of its bits if it has more."""

        def bits_of(shift: int, ring: int) -> Wire:
            op = HighBits(opened.ring, shift, ring)
            return self.emit(op, [opened], [(ring, opened.frac - shift, opened.shape, bound)])[0]

        y = bits_of(shift, ring)
        if watched:
            more = max(0, ring - WATCHED)
            self._watch_ring(bits_of(shift + more, WATCHED) if more and self.guards else y)
        return y

    def watch_high(self, opened: Wire) -> None:
        """Watch an opened wire of more than WATCHED bits, as far as its bound goes, by the WATCHED highest of them."""
        if self.guards and opened.ring > WATCHED:
            self.high(opened, opened.ring - WATCHED, WATCHED, opened.bound, watched=True)

    def sum(self, x: Wire, dim: int, bound: float | None = None) -> Wire:
        shape = list(x.shape)
        shape[dim] = 1
        limit = x.bound * x.shape[dim] if bound is None else bound
        return self.emit(Sum(x.ring, dim), [x], [(x.ring, x.frac, tuple(shape), limit)])[0]

    def truncate(self, x: Wire, t: int, ring: int = 0, bound: float | None = None) -> Wire:
        """Truncate-reduce by t; the ring defaults to the largest multiple of 8 that is left."""
        out = ring or (x.ring - t) // 8 * 8
        limit = x.bound if bound is None else bound
        return self.emit(TruncateReduce(x.ring, t, out), [x], [(out, x.frac - t, x.shape, limit)])[0]

    def extend(self, opened: Wire, ring: int) -> Wire:
        self.fits(opened, 2)
        op = Extend(opened.shape, opened.ring, ring)
        wide = self.emit(op, [opened], [(ring, opened.frac, opened.shape, opened.bound)])[0]
        self._safe.add(wide.name)
        return wide

    def product(self, x: Wire, y: Wire, bound: float | None = None) -> Wire:
        bits = min(x.ring, y.ring)
        op = Product((x.shape, y.shape), bits)
        shape, frac = broadcast(x.shape, y.shape), x.frac + y.frac
        return self.emit(op, [x, y], [(bits, frac, shape, x.bound * y.bound if bound is None else bound)])[0]

    def product3(self, x: Wire, y: Wire, z: Wire, bound: float) -> Wire:
        bits = min(x.ring, y.ring, z.ring)
        op = Product3((x.shape, y.shape, z.shape), bits)
        shape, frac = broadcast(x.shape, y.shape, z.shape), x.frac + y.frac + z.frac
        return self.emit(op, [x, y, z], [(bits, frac, shape, bound)])[0]

    def retype(self, x: Wire, **changes: int | float) -> Wire:
        """The same integers read as another type (a scale by a power of two, a tighter bound)."""
        return replace(x, **changes)  # type: ignore[arg-type]

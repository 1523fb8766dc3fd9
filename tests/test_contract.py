"""The contract of every registered operation: result within its ulp of plain, ledger equal to cost, single use.

What the dealer shares is what the operation declares, and all of it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from engine import Run, run_mpc

from ditto.engine import job
from ditto.engine.job import DealerJob
from ditto.engine.plain import run_plain
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.sharing import reveal, reveal_cost, seeded_share, share, share_cost
from ditto.engine.weights import DealerWeights
from ditto.errors import BadShare, ReuseError
from ditto.ops import (
    B2A,
    REGISTRY,
    Add,
    AddStarts,
    Affine,
    CausalMask,
    Combine,
    Compare,
    Differences,
    Exponential,
    Extend,
    Guard,
    Harmonic,
    HighBits,
    InverseLines,
    InverseTree,
    IsZero,
    Join,
    LessRow,
    Lookup,
    Losses,
    Matmul,
    MatmulWeight,
    Mux,
    MuxAll,
    NonZero,
    OneHot,
    Op,
    Open,
    Product,
    Product3,
    Random,
    RelativePositions,
    Sketch,
    Square,
    SuffixSum,
    Sum,
    SumOfSquares,
    Triangle,
    TruncateReduce,
    Untriangle,
    View,
    Widen,
    WideProduct,
    WideSquare,
    Windows,
    Zones,
)
from ditto.ops.base import Given, Shared, Types
from ditto.ops.guard import KEY
from ditto.ring import cast, pack, signed, unpack, unsigned
from ditto.ring.prg import new_seed

S = (5, 7)


@dataclass
class Case:
    """An operation on input types (ring, shape, limit on |x| in units); `opened` says whether they are opened first.

    The bit that `Mux` and `B2A` read is the sign of their first input, of which `MuxAll` reads [x < 5] and
    [x < -7], too; `B2A` makes
    `Compare`, `IsZero` and `Zones` readable. `Guard` and `Sketch` read an opened `Random`, `Guard` is what makes one
    readable. `NonZero` reads a `Sketch`, and with `Lookup` makes it readable. `SumOfSquares` makes `Widen` readable.
    """

    op: Op
    inputs: list[tuple[int, tuple[int, ...], int]]
    ring: int
    shape: tuple[int, ...]
    opened: bool = True
    weight: bool = False
    low: int | None = None

    @property
    def name(self) -> str:
        return f"{type(self.op).__name__}-{'-'.join(str(b) for b, _, _ in self.inputs)}-{self.ring}"


def full(bits: int) -> int:
    return 2 ** (bits - 1)


CASES = [
    *(Case(Open(((S, b),)), [(b, S, full(b))], b, S, opened=False) for b in (8, 12, 16, 24, 32, 40, 48, 56, 64)),
    Case(Add(16, (0, 3)), [(32, S, full(32)), (16, S, full(16))], 16, S, opened=False),
    Case(Add(64, (0, 8)), [(64, S, full(64)), (64, (7,), full(64))], 64, S, opened=False),
    Case(Affine(24, -7, 1 << 23), [(24, S, full(24))], 24, S, opened=False),
    Case(Affine(16, 1 << 15, 40000), [(16, S, full(16))], 16, S, opened=False),
    Case(Affine(64, -3, 5), [(64, S, full(64))], 64, S, opened=False),
    Case(Sum(8, 1), [(8, S, full(8))], 8, (5, 1), opened=False),
    Case(Sum(40, 0), [(40, S, full(40))], 40, (1, 7), opened=False),
    Case(SuffixSum(8), [(8, S, full(8))], 8, S, opened=False),
    Case(View(((1, 2, 6),), (10, 2), (1, 0)), [(32, S, full(32))], 32, (2, 10), opened=False),
    Case(CausalMask(5, 24, -(1 << 20)), [(24, (2, 5, 5), full(24))], 24, (2, 5, 5), opened=False),
    *(
        case
        for opened in (False, True)
        for case in (
            Case(Join(24, 1), [(24, S, full(24)), (24, (5, 3), full(24))], 24, (5, 10), opened),
            Case(Triangle(5), [(40, (2, 5, 5), full(40))], 40, (2, 15), opened),
            Case(Untriangle(5), [(16, (2, 15), full(16))], 16, (2, 5, 5), opened),
            Case(Untriangle(3, (4,)), [(8, (2, 6, 4), full(8))], 8, (2, 3, 3, 4), opened),
            Case(RelativePositions(9, 16, 8), [(16, (2, 16), full(16))], 16, (2, 9, 9), opened),
        )
    ),
    *(
        Case(TruncateReduce(b, t, o), [(b, S, full(b))], o, S, opened=False)
        for b, t, o in (
            (32, 8, 24),
            (32, 12, 16),
            (24, 5, 16),
            (64, 32, 32),
            (56, 16, 40),
            (16, 9, 7),
            (8, 1, 7),
            (64, 0, 24),
        )
    ),
    *(
        Case(Extend(S, b, o), [(b, S, 2 ** (b - 2))], o, S)
        for b, o in ((8, 16), (16, 32), (16, 64), (24, 32), (24, 64), (32, 64), (32, 40), (40, 64), (16, 40))
    ),
    *(Case(Square(S, b), [(b, S, full(b))], b, S) for b in (8, 16, 24, 32, 40, 64)),
    *(Case(Product((S, (5, 1)), b), [(b, S, full(b)), (b, (5, 1), full(b))], b, S) for b in (8, 24, 32, 64)),
    *(
        Case(Product3(shapes, b), [(b, shape, full(b)) for shape in shapes], b, S)
        for b, shapes in ((32, (S, (5, 1), (7,))), (64, ((5, 1), (7,), (5, 1))))
    ),
    *(
        Case(MatmulWeight(5, 7, 3, b), [(b, S, full(b)), (b, (7, 3), full(b))], b, (5, 3), weight=True)
        for b in (8, 16, 24, 32, 48, 64)
    ),
    *(
        Case(Matmul((2, 5, 7), (2, 7, 3), b), [(b, (2, 5, 7), full(b)), (b, (2, 7, 3), full(b))], b, (2, 5, 3))
        for b in (16, 32, 40, 64)
    ),
    Case(Harmonic(S, 12, 32, 11, 10, 0.5, (1.5, -0.7, 0.1), (0.0, 0.3, 0.0)), [(12, S, full(12))], 32, S),
    Case(Harmonic(S, 8, 24, 8, 8, 0.0, (0.0, 0.0), (1.0, 0.25)), [(8, S, full(8))], 24, S),
    Case(Exponential(S, 16, 8, 10, -3, 0, 56, 10, 19), [(16, S, 1000)], 56, S, low=-(2**15) + 4096),
    Case(Exponential(S, 16, 9, 12, -2, 0, 64, 10, 27), [(16, S, 2000)], 64, S, low=-(2**15) + 8192),
    Case(Lookup(S, 8, 8, tuple(int(i > 0) for i in range(256))), [(8, S, full(8))], 8, S),
    Case(Lookup(S, 11, 40, tuple((i * i * 7919) % 2**39 for i in range(2048))), [(11, S, full(11))], 40, S),
    Case(OneHot(S, 6, 8), [(6, S, full(6))], 8, (*S, 64)),
    Case(OneHot(S, 3, 64), [(3, S, full(3))], 64, (*S, 8)),
    Case(OneHot(S, 5, 7, 11), [(16, S, full(16))], 7, (*S, 32)),
    *(
        Case(Sketch(shape, b, n, asked, counted, 14, 1, causal), [(b, shape, full(b))], 5, (*rows, asked))
        for shape, b, n, asked, counted, causal, rows in (
            (S, 5, 5, 12, 13, False, (5,)),
            (S, 16, 5, 12, 13, False, (5,)),
            (S, 3, 3, 7, 7, False, (5,)),
            ((3, 40, 70), 8, 8, 66, 67, False, (3, 40)),
            ((2, 15), 6, 6, 20, 21, True, (2, 5)),
            ((3, 171), 9, 9, 100, 101, True, (3, 18)),
        )
    ),
    Case(NonZero((5, 12, 15), 4), [(5, S, full(5))], 5, (5, 12)),
    *(
        case
        for opened in (False, True)
        for case in (
            Case(LessRow(16, 11), [(16, S, full(16)), (5, (5, 1), full(5))], 16, S, opened),
            Case(LessRow(16, 10, 5), [(16, (2, 15), full(16)), (6, (2, 5, 1), full(6))], 16, (2, 15), opened),
        )
    ),
    *(
        Case(Compare(shape, b, (0, -5, 77, 1 << (b - 3))), [(b, shape, 2 ** (b - 2))], 64, (4, *shape))
        for b, shape in ((8, S), (12, S), (24, S), (32, (3, 100)), (40, S), (46, (2, 64)), (64, S))
    ),
    Case(Compare((1,), 16, (3,)), [(16, (1,), 2**14)], 64, (1, 1)),
    *(Case(B2A(S, b), [(b, S, full(b))], b, S) for b in (8, 24, 46, 64)),
    *(Case(Mux(S, (5, 1), b), [(b, S, full(b)), (b, (5, 1), full(b))], b, S) for b in (8, 24, 46, 64)),
    *(Case(MuxAll(S, b, n), [(b, S, full(b)), (b, S, full(b))], b, S) for b, n in ((8, 2), (24, 3), (46, 2), (64, 3))),
    *(Case(HighBits(b, t, 6), [(b, S, full(b))], 6, S) for b, t in ((16, 10), (40, 34), (49, 20), (64, 58), (12, 3))),
    Case(InverseLines(S, 16, 3, 6, 4, 20, False, 24, 440), [(16, S, full(16) // 8)], 20, S, low=7 << 9),
    Case(InverseLines(S, 24, 0, 3, 5, 40, True, 30, 8), [(24, S, 255)], 40, S, low=8),
    *(
        Case(InverseTree(S, b, low, n, out, root, scale, 7 << low), [(b, S, limit)], out, S, low=7 << low)
        for b, low, n, out, root, scale, limit in (
            (24, 6, 13, 33, True, 35, 2**19 - 2**6),
            (40, 6, 30, 46, True, 46, 2**36 - 2**6),
            (10, 6, 4, 20, False, 26, 2**9),
            (64, 3, 9, 64, True, 50, 2**12 - 2**3),
        )
    ),
    Case(Zones(S, 24, 9, 8, (0, 15, 60, 255, 256)), [(24, S, full(24))], 64, (4, *S)),
    Case(Zones((3, 50), 6, 0, 6, (0, 1, 17, 64)), [(6, (3, 50), full(6))], 64, (3, 3, 50)),
    *(
        Case(WideSquare(S, b, o), [(b, S, 2 ** (b - 2))], o, S)
        for b, o in ((24, 32), (24, 64), (46, 64), (56, 64), (16, 64), (36, 64))
    ),
    *(
        Case(SumOfSquares(S, b, o), [(b, S, 2 ** (b - 2))], o, (5, 1))
        for b, o in ((24, 32), (24, 64), (46, 64), (24, 40), (16, 64), (36, 64))
    ),
    *(Case(Widen(S, b, o), [(b, S, 2 ** (b - 2))], o, (5, 1)) for b, o in ((24, 40), (16, 64), (36, 64), (46, 64))),
    *(
        Case(
            WideProduct((shape, (5, 1)), (a, b), o, True),
            [(a, shape, 2 ** (a - 2)), (b, (5, 1), 2 ** (b - 2))],
            o,
            shape,
        )
        for shape, a, b, o in ((S, 46, 46, 64), (S, 24, 28, 48), ((1, 5, 7000), 16, 64, 64))
    ),
    *(
        Case(WideProduct((S, (5, 1)), (a, b), o), [(a, S, 2 ** (a - 2)), (b, (5, 1), 2 ** (b - 2))], o, S)
        for a, b, o in ((46, 46, 64), (46, 64, 64), (64, 46, 64), (24, 32, 64), (24, 24, 32), (16, 8, 64))
    ),
    Case(Windows(3), [(24, (2, 5, 7), full(24))], 24, (2, 5, 3, 3), opened=False),
    Case(Windows(4), [(32, (5, 8), full(32))], 32, (5, 2, 4)),
    *(Case(Differences(b), [(b, S, full(b))], b, (5, 21)) for b in (8, 16, 24, 64)),
    Case(Differences(40), [(40, (4, 3, 2), full(40))], 40, (4, 3, 1), opened=False),
    *(Case(Losses(7, b), [(b, (5, 21), full(b))], b, S, opened=False) for b in (3, 8, 11)),
    *(Case(IsZero(shape, n), [(n, shape, full(n))], 64, shape) for n, shape in ((1, S), (2, (3, 50)), (8, S), (9, S))),
    Case(AddStarts(50, 8, 32), [(32, S, full(32))], 32, S, opened=False),
    Case(AddStarts(56, 8, 8), [(8, S, full(8))], 8, S, opened=False),
    *(
        Case(Guard(S, b, -limit, limit, 3), [(b, S, limit + 1)], 64, (1,), low=-limit)
        for b, limit in ((8, 1), (12, 0), (12, 1663), (16, 2**14), (24, 2**20 - 1), (40, 7), (64, 2**62))
    ),
    Case(Guard((70000,), 16, -100, 5000, 0), [(24, (70000,), 5001)], 64, (1,), low=-100),
    Case(Random(KEY), [(8, S, 20)], 64, (1,)),
    Case(Combine(64, (1, -2, 3, 2**62, 5, 6, 7)), [(64, S, full(64))], 64, (5,), opened=False),
]


def build(case: Case) -> Program:
    b = Builder()
    b.layer("layer")
    b.label("operation")
    wires: list[Wire] = []
    for i, (bits, shape, _) in enumerate(case.inputs):
        if case.weight and i == 1:
            wires.append(b.weight(f"x{i}", bits, 0, shape, "matrix"))
        else:
            wires.append(b.input(f"x{i}", bits, 0, shape, 0.0))
    if case.opened:
        free = [w for w in wires if not w.held]
        opened = b.open(*free)
        wires = opened + [w for w in wires if w.held]
    if isinstance(case.op, (Mux, MuxAll, B2A)):
        thresholds = (0, 5, -7)[: case.op.count] if isinstance(case.op, MuxAll) else (0,)
        sign = Compare(wires[0].shape, wires[0].ring, thresholds)
        (bit,) = b.emit(sign, wires[:1], [(1, 0, sign.out, 0.0)])
        wires[:1] = [b.view(bit, slices=((0, i, i + 1),), shape=sign.out[1:]) for i in range(len(thresholds))]
    if isinstance(case.op, SumOfSquares) or (isinstance(case.op, WideProduct) and case.op.widened):
        ring = case.op.out + (0 if case.op.out == 64 else 8)  # what is dealt for a larger product serves a smaller one
        (x, *_), wide = wires, Widen(wires[0].shape, wires[0].ring, ring)
        wires[0] = b.emit(wide, [x], [(x.ring, 0, x.shape, 0.0)])[0]
    if isinstance(case.op, (Guard, Random)):
        (key,) = b.open(*b.emit(Random(KEY), [], [(64, 0, (KEY,), 0.0)]))
        op = case.op if isinstance(case.op, Guard) else Guard(wires[0].shape, wires[0].ring, -20, 20, 0)
        (y,) = b.emit(op, [key, *wires], [(case.ring, 0, case.shape, 0.0)])
    elif isinstance(case.op, (Sketch, NonZero)):
        y = is_used(b, wires[0], case)
    elif isinstance(case.op, HighBits):
        (high,) = b.emit(case.op, wires, [(case.op.out, 0, case.shape, 0.0)])
        same = tuple(int(signed(torch.tensor(i), case.op.out)) for i in range(1 << case.op.out))
        (y,) = b.emit(Lookup(case.shape, case.op.out, case.ring, same), [high], [(case.ring, 0, case.shape, 0.0)])
    elif isinstance(case.op, Widen):
        wide = b.emit(case.op, wires, [(wires[0].ring, 0, wires[0].shape, 0.0)])
        (y,) = b.emit(SumOfSquares(wires[0].shape, wires[0].ring, case.op.out), wide, [(case.ring, 0, case.shape, 0.0)])
    else:
        (y,) = b.emit(case.op, wires, [(case.ring, 0, case.shape, 0.0)])
    if isinstance(case.op, (Compare, IsZero, Zones)):
        (y,) = b.emit(B2A(case.shape, case.ring), [y], [(case.ring, 0, case.shape, 0.0)])
    b.output("y", y)
    return b.program


def is_used(b: Builder, x: Wire, case: Case) -> Wire:
    """The bits that a `Sketch` stands for: is any id of the row in [t, counted]?"""
    op = case.op if isinstance(case.op, Sketch) else Sketch(x.shape, x.ring, x.ring, 12, 13, case.op.shape[-1], 0)
    (words,) = b.emit(op, [b.key(), x], [(3, 0, op.out, 0.0)])
    (count,) = b.open(*b.emit(NonZero(op.out, 4), [words], [(4, 0, case.shape, 0.0)]))
    table = Lookup(case.shape, 4, case.ring, tuple(int(i > 0) for i in range(16)))
    return b.emit(table, [count], [(case.ring, 0, case.shape, 0.0)])[0]


def samples(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """Random values with the edges of the range among them."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for i, (bits, shape, limit) in enumerate(case.inputs):
        low = -limit if case.low is None else case.low
        span = 2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0
        x = (span * (limit - 1)).to(torch.int64) if case.low is None else low + ((span + 1) / 2 * (limit - low)).long()
        flat = x.reshape(-1)
        for at, edge in enumerate((low, limit - 1, 0, -1, 1)):
            if at < len(flat):
                flat[at] = edge
        values[f"x{i}"] = signed(flat.reshape(shape), bits)
    return values


def test_every_operation_has_a_case() -> None:
    assert {type(case.op).__name__ for case in CASES} == set(REGISTRY)


def compute(case: Case, seed: int) -> tuple[Program, Run, float]:
    """The case's program run on samples, and how far the result is off, in units of the last place."""
    program, values = build(case), samples(case, seed)
    inputs = {n: x for n, x in values.items() if n in program.inputs}
    weights = {n: x for n, x in values.items() if n in program.weights}
    want = run_plain(program, inputs, weights)["y"]
    run = run_mpc(program, inputs, weights)
    got = run.outputs["y"]
    assert got.shape == want.shape == case.shape
    return program, run, float(signed(got - want, case.ring).double().abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_contract(case: Case) -> None:
    for seed in range(6):
        program, run, gap = compute(case, seed)
        assert gap <= case.op.ulp(), f"off by {gap} ulp, stated {case.op.ulp()}"
        cost = program.cost()  # of the operation and of the openings, each under its own contract
        for ledger in run.ledgers:
            total = ledger.total("online")
            assert (total.rounds, total.bytes_sent) == (cost.rounds, cost.online)
        dealt = [ledger.total("offline").bytes_from_dealer for ledger in run.ledgers]
        assert sum(dealt) == cost.dealer
        assert dealt == [s.taken for s in run.sources] and [s.left for s in run.sources] == [0, 0]


DEALING = [case for case in CASES if case.op.dealt()]


@pytest.mark.parametrize("case", DEALING, ids=lambda c: c.name)
def test_what_is_dealt_is_declared(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, shapes and rings, at the dealer and at both parties, whose shares make up what the dealer shared, or who
    have what it gave. A party expands some of its own only when they are read: here they are in the steps' order."""
    values: list[torch.Tensor] = []
    types: list[Shared] = []
    taken: dict[int, list[tuple[int, Shared, torch.Tensor]]] = {0: [], 1: []}

    class DealerContext(job._DealerContext):
        def share(self, x: torch.Tensor, of: Shared) -> None:
            types.append(of)
            values.append(x.clone())
            super().share(x, of)

    class PartyContext(job._PartyContext):
        def dealt(self, of: Shared) -> torch.Tensor:
            x = super().dealt(of)
            taken[self.party].append((self._index, of, x.clone()))
            return x

    monkeypatch.setattr(job, "_DealerContext", DealerContext)
    monkeypatch.setattr(job, "_PartyContext", PartyContext)
    program, _, _ = compute(case, 0)
    declared = [of for step in program.steps for of in step.op.dealt().values()]
    both = [sorted(of_party, key=lambda found: found[0]) for of_party in taken.values()]
    assert [types, *([of for _, of, _ in of_party] for of_party in both)] == [declared] * 3
    shares = ([x for *_, x in of_party] for of_party in both)
    for x, first, second, of in zip(values, *shares, declared, strict=True):
        assert tuple(x.shape) == tuple(first.shape) == tuple(second.shape) == of.shape
        whole = first ^ second if of.packed else first + second
        for found in (first, second) if isinstance(of, Given) else (whole,):
            assert torch.equal(signed(found, of.bits), signed(x, of.bits))
    for step in program.steps:
        names = [*(name for names in step.op.opens() for name in names), *step.op.drawn(), *step.op.dealt()]
        assert len({*names}) == len(names)


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in DEALING for name, of in case.op.dealt().items() if of.bits > 8 and not of.packed],
    ids=lambda x: x.name if isinstance(x, Case) else x,
)
def test_every_dealt_byte_is_needed(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a byte less of one tensor the result is wrong: no ring is declared wider than the operation needs."""

    class LessOp(type(case.op)):  # type: ignore[misc]
        def dealt(self) -> Types:
            of = super().dealt()[name]
            return {**super().dealt(), name: less[type(of)](of.shape, (of.bits - 1) // 8 * 8)}

    class PartyContext(job._PartyContext):
        def dealt(self, of: Shared) -> torch.Tensor:
            x = super().dealt(of)  # if less, so that two shares add up to more than the smaller ring
            return cast(unsigned(x, of.bits), of.bits + 8) if type(of) in less.values() else x

    less: dict[type[Shared], type[Shared]] = {kind: type("Less", (kind,), {}) for kind in (Shared, Given)}

    monkeypatch.setattr(job, "_PartyContext", PartyContext)
    shorter = replace(case, op=LessOp(*(getattr(case.op, f.name) for f in fields(case.op))))  # type: ignore[arg-type]
    # not every run shows it: public bits may be zero wherever it counts
    assert any(compute(shorter, seed)[2] > case.op.ulp() for seed in range(8))


class _Otherwise(Square):
    """Declares one thing and deals another."""

    def correlate(self, *masks: torch.Tensor) -> dict[str, torch.Tensor]:
        return WRONG[self.bits](super().correlate(*masks)["rr"])


WRONG = {
    24: lambda rr: {"r2": rr},
    32: lambda rr: {"rr": rr, "r": rr},
    40: lambda rr: {"rr": rr[1:]},
    64: lambda rr: {"rr": rr.to(torch.int32)},
}


@pytest.mark.parametrize("bits", WRONG)
def test_dealing_otherwise_than_declared(bits: int) -> None:
    """Other names, more names, another shape, a smaller carrier."""
    with pytest.raises(TypeError, match=r"deals .*, declared"):
        compute(Case(_Otherwise(S, bits), [(bits, S, full(bits))], bits, S), 0)


def test_dealing_for_what_is_not_opened() -> None:
    with pytest.raises(TypeError, match="opened"):
        compute(Case(Square(S, 64), [(64, S, full(64))], 64, S, opened=False), 0)


def test_single_use() -> None:
    case = CASES[0]
    run = run_mpc(build(case), samples(case, 0))
    for again in (run.jobs[0].prepare, run.jobs[0].run):
        with pytest.raises(ReuseError):
            again(0)
    program = build(case)
    dealer = DealerJob(program, "once", (bytes(16), bytes(16)), DealerWeights(program.weights, (bytes(16), bytes(16))))
    list(dealer.deal())
    with pytest.raises(ReuseError):
        list(dealer.deal())


@pytest.mark.parametrize("bits", [8, 12, 16, 24, 32, 40, 48, 56, 64])
def test_share_and_reveal(bits: int) -> None:
    wire = Wire("x", bits, 0, S, 0.0)
    x = samples(Case(Open(((S, bits),)), [(bits, S, full(bits))], bits, S), 1)["x0"]
    seed = new_seed()
    packed = pack(share("x", x, wire, seed), bits)
    shares = seeded_share("x", wire, seed), unpack(packed, bits, S)
    assert torch.equal(reveal(shares, wire), x)
    assert share_cost(wire).online == len(seed) + len(packed) and reveal_cost(wire).online == len(packed)
    with pytest.raises(BadShare, match="expected"):
        share("x", x[1:], wire, seed)

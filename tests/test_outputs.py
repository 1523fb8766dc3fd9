"""What a client receives: shares that say nothing but the answer, in no more bits than it needs."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from engine import Session, both
from hypothesis import given
from hypothesis import strategies as st
from uniform import chi_square, chi_square_limit

from ditto.engine import job as engine_job
from ditto.engine.channel import MemoryChannel
from ditto.engine.job import step_prg
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.sharing import SPARE, answer_type, common_key, rerandomised, reveal
from ditto.engine.weights import weight_mask
from ditto.errors import BadShare
from ditto.functions.linear import linear
from ditto.ring import cast, pack, signed, unpack
from ditto.ring.prg import Prg, new_seed

HIDDEN, LABELS, RING, JOBS = 4, 12, 32, 10  # of the head that is attacked
# Masks of JOBS jobs have rank HIDDEN modulo 2 but once in 2^(JOBS - HIDDEN), about; so one attempt in 60 fails at them,
# and four of four once in 10^7.
ATTEMPTS = 4
MODULUS = 1 << RING
Matrix = list[list[int]]


# The attack of a client with the dealer ------------------------------------------------------------


def head() -> Program:
    b = Builder()
    b.layer("head")
    (x,) = b.open(b.input("x", RING, 8, (1, HIDDEN), 8.0))
    b.output("logits", linear(b, x, "head", LABELS, 64.0))
    return b.program


def solve(rows: Matrix, right: list[int], count: int) -> list[int] | None:
    """A solution of linear equations over Z_2^32 by odd pivots, free unknowns 0; None where there is none."""
    m = [[a % MODULUS for a in row] + [b % MODULUS] for row, b in zip(rows, right, strict=True)]
    pivots: dict[int, int] = {}
    for column in range(count):
        done = len(pivots)
        found = next((i for i in range(done, len(m)) if m[i][column] & 1), None)
        if found is None:
            continue
        m[done], m[found] = m[found], m[done]
        inverse = pow(m[done][column], -1, MODULUS)
        pivot = m[done] = [a * inverse % MODULUS for a in m[done]]
        for i, row in enumerate(m):
            if i != done and row[column]:
                factor = row[column]
                m[i] = [(a - factor * b) % MODULUS for a, b in zip(row, pivot, strict=True)]
        pivots[column] = done
    if any(row[count] for row in m[len(pivots) :]):
        return None
    return [m[pivots[c]][count] if c in pivots else 0 for c in range(count)]


def tensor(values: list[int], *shape: int) -> torch.Tensor:
    return signed(torch.tensor([v - MODULUS if v >= MODULUS // 2 else v for v in values]), RING).reshape(shape)


def attack(session: Session, program: Program, inputs: list[torch.Tensor]) -> torch.Tensor | None:
    """The head's weights from the client's view (party 1's output share) and the dealer's (every seed), or None.

    MatmulWeight leaves party 1 with `y_1 = -(X + A) B_1 - A_1 (W + B) + C_1 + b_1`. Every mask in it is the dealer's,
    so it is linear in X, W and b_1: JOBS of them determine these but for `X + A_1 T, W - T B_1` with T any matrix. The
    answers `X W + b` then determine T, linearly once products of its entries count as unknowns of their own.
    """
    k, v = HIDDEN, LABELS
    b0, b1 = (weight_mask(session._model[i], program.weights["head.weight"], i).long() for i in (0, 1))
    rows: Matrix = []
    right: list[int] = []
    masks, answers = [], []
    count = k * v + v + JOBS * k  # W, b_1, X of each job
    for q, x in enumerate(inputs):
        first = session._first
        run = session.run(program, {"x": x})
        client = run.jobs[1].outputs()["logits"].long()
        answers.append(run.outputs["logits"][0].long())
        a0, a1 = (step_prg(seed, session.job, first).ring((1, k), RING).long() for seed in session._seeds)
        seeded = program.seeded[1]
        c = step_prg(session._seeds[seeded], session.job, first + 1).ring((1, v), RING).long()
        c1 = c if seeded == 1 else (a0 + a1) @ (b0 + b1) - c
        known = (c1 - (a0 + a1) @ b1 - a1 @ (b0 + b1) - client)[0]  # = X B_1 + A_1 W - b_1
        masks.append(a1[0])
        for j in range(v):
            row = [0] * count
            for i in range(k):
                row[i * v + j] = int(a1[0, i])
                row[k * v + v + q * k + i] = int(b1[i, j])
            row[k * v + j] = -1
            rows.append(row)
            right.append(int(known[j]))
    found = solve(rows, right, count)
    if found is None:
        return None
    w, x = tensor(found[: k * v], k, v), tensor(found[k * v + v :], JOBS, k)
    rows, right, count = [], [], 2 * k * k + v  # T, its products, b
    for q in range(JOBS):
        for j in range(v):
            row = [0] * count
            for a in range(k):
                for c_ in range(k):
                    row[a * k + c_] = int(masks[q][a] * w[c_, j] - x[q, a] * b1[c_, j])
                    row[k * k + a * k + c_] = int(-masks[q][a] * b1[c_, j])
            row[2 * k * k + j] = 1
            rows.append(row)
            right.append(int(answers[q][j] - (x[q] * w[:, j]).sum()))
    found = solve(rows, right, count)
    return None if found is None else signed(w - tensor(found[: k * k], k, k) @ b1, RING)


@pytest.mark.parametrize("protected", [False, True])
def test_a_client_with_the_dealer(protected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares as the last operation leaves them give all weights of a head; shared anew, they fit no weights at all."""
    if not protected:
        monkeypatch.setattr(engine_job, "rerandomised", lambda share, *_: share)
    generator = torch.Generator().manual_seed(1)
    program = head()
    weight = torch.randint(-4096, 4096, (HIDDEN, LABELS), generator=generator)
    bias = torch.randint(-(2**20), 2**20, (LABELS,), generator=generator)
    inputs = [cast(torch.randint(-2048, 2048, (1, HIDDEN), generator=generator), RING) for _ in range(JOBS)]
    found = []
    for _ in range(ATTEMPTS):
        session = Session(program.weights, {"head.weight": cast(weight, RING), "head.bias": cast(bias, RING)})
        found.append(attack(session, program, inputs))
    if protected:
        assert found == [None] * ATTEMPTS
    else:
        assert any(guess is not None and torch.equal(guess, weight) for guess in found)


# Shared anew ----------------------------------------------------------------------------------------


def test_shares_are_uniform_whatever_the_dealer_knows() -> None:
    """Given what the dealer and the client may know (both shares before), each share after is a fair draw."""
    wire = Wire("y", 32, 0, (50, 1000), 1.0)
    before = torch.zeros(wire.shape, dtype=torch.int32)
    for party in (0, 1):
        after = pack(rerandomised(before, party, new_seed(), 0, "y", wire), wire.ring)
        assert chi_square(after) < chi_square_limit()


def test_the_answer_is_the_same() -> None:
    wire = Wire("y", 40, 0, (7, 5), 1.0)
    shares = [Prg(new_seed()).ring(wire.shape, wire.ring) for _ in (0, 1)]
    key = new_seed()
    after = [rerandomised(share, party, key, 3, "y", wire) for party, share in enumerate(shares)]
    assert torch.equal(reveal((after[0], after[1]), wire), reveal((shares[0], shares[1]), wire))
    assert not torch.equal(signed(after[0], 40), signed(shares[0], 40))


def test_every_output_of_every_stage_has_its_own() -> None:
    wire = Wire("y", 32, 0, (64,), 1.0)
    zero, key = torch.zeros(64, dtype=torch.int32), new_seed()
    drawn = {
        tuple(rerandomised(zero, 0, k, step, name, wire).tolist())
        for k in (key, new_seed())
        for step in (0, 1)
        for name in ("a", "b")
    }
    assert len(drawn) == 8


def keys(*jobs: str) -> list[bytes]:
    channels = MemoryChannel.pair()
    found = [b"", b""]

    def agree(party: int) -> None:
        found[party] = common_key(channels[party], party, jobs[party])

    both(agree)
    return found


def test_a_common_key_is_common_and_used_once() -> None:
    first, second = keys("a", "a"), keys("a", "a")
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]
    mixed = keys("a", "b")
    assert mixed[0] != mixed[1]


def test_a_common_key_of_another_length_is_refused() -> None:
    one, other = MemoryChannel.pair()
    peer = threading.Thread(target=other.exchange, args=("common key", bytes(15)))
    peer.start()
    with pytest.raises(BadShare, match="15 bytes"):
        common_key(one, 0, "job")
    peer.join()


# As many bits as it takes -----------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(0, 30), st.floats(1e-3, 1e6), st.floats(-1, 1))
def test_a_cut_answer_is_the_answer(size: int, frac: int, bound: float, part: float) -> None:
    """Up to 2^SPARE times the bound, where the ring held that before."""
    wire = Wire("y", 8 * size, frac, (1,), bound)
    cut = answer_type(wire)
    assert cut.ring % 8 == 0 and cut.ring <= wire.ring and cut.frac == frac
    value = int(part * math.ldexp(bound, frac + SPARE))
    if abs(value) >= 1 << wire.ring - 1:
        return
    x = torch.tensor([value])
    first = Prg(new_seed()).ring((1,), wire.ring)
    shares = [unpack(pack(s, cut.ring), cut.ring, (1,)) for s in (first, cast(x, wire.ring) - first)]
    assert int(reveal((shares[0], shares[1]), cut)) == value


def test_what_is_cut() -> None:
    assert answer_type(Wire("hidden", 64, 18, (1,), 6.84)).ring == 24
    assert answer_type(Wire("hidden", 32, 8, (1,), 6.84)).ring == 16
    assert answer_type(Wire("logits", 32, 20, (1,), 4.26)).ring == 32
    assert answer_type(Wire("unknown", 40, 8, (1,), 0.0)).ring == 40

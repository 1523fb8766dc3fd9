"""The range guard: what leaves its zone is said, to the client alone; what stays in it never is."""

from __future__ import annotations

import pytest
import torch
from engine import Session, run_mpc
from test_contract import Case, build

from ditto.engine import job
from ditto.engine.plain import run_plain
from ditto.engine.program import GUARD, Builder, Program
from ditto.ops import Guard
from ditto.ops.guard import PARITIES, _parities
from ditto.ring.prg import Prg, new_seed

N = 400


def guarded(op: Guard, ring: int) -> Program:
    return build(Case(op, [(ring, op.shape, 1)], 64, (1,)))


def word(op: Guard, ring: int, x: torch.Tensor) -> int:
    return int(run_mpc(guarded(op, ring), {"x0": x}).outputs["y"])


@pytest.mark.parametrize(("ring", "bits"), [(16, 16), (24, 12), (40, 20), (64, 64), (8, 8)])
def test_one_value_outside_is_enough(ring: int, bits: int) -> None:
    """In [low, high] never a word other than 0; beyond by 3/2 of a sixteenth always one, and `plain` agrees."""
    unit = 2 ** (bits - 4)
    low, high = -unit // 2, 3 * unit
    op = Guard((N,), bits, low, high, 0)
    inside = torch.linspace(low, high, N).long().clamp(low, high)
    assert word(op, ring, inside) == 0
    assert int(op.plain(torch.zeros(2), inside)[0]) == 0
    for outside in (low - 3 * unit // 2 - 1, high + 3 * unit // 2 + 1, low - 4 * unit):
        x = inside.clone()
        x[N - 1] = outside
        assert int(op.plain(torch.zeros(2), x)[0]) == 1
        assert word(op, ring, x) != 0


def test_between_zone_and_certainty_either_may_happen() -> None:
    """The carry decides: of a value three quarters of a sixteenth outside, some runs say so and some do not."""
    op = Guard((1,), 16, -4000, 4000, 0)  # a zone of two sixteenths, which ends at 4096
    found = {word(op, 16, torch.tensor([4096 + 2048])) != 0 for _ in range(40)}
    assert found == {False, True}  # missed by a right guard with a chance of 2^-39


def test_parities_are_linear_and_find_every_bit() -> None:
    """Each single bit, at the edges of words and blocks, changes the word; of sums it is the sum."""
    prg = Prg(new_seed())
    count = 1500  # more than one block of columns
    stream = prg.ring((count + PARITIES - 1,), 64).numpy()
    a, b = (prg.ring((count,), 64).numpy() for _ in range(2))
    assert int(_parities(a, stream) ^ _parities(b, stream)) == int(_parities(a ^ b, stream))
    words = set()
    for at in (0, 1, 63, 64, 1023 * 64 + 5, 1024 * 64, count * 64 - 1):
        bits = torch.zeros(count, dtype=torch.int64)
        bits[at // 64] = 1 << at % 64 if at % 64 < 63 else -(1 << 63)
        words.add(int(_parities(bits.numpy(), stream)))
    assert 0 not in words and len(words) == 7


def layers(guards: bool = True) -> Program:
    """Two layers, each opens two wires on 16 bits; a third opens nothing with a bound."""
    b = Builder(guards)
    x = b.input("x", 16, 8, (8, 8), 2.0)
    for i in range(2):
        b.layer(f"layer {i}")
        with b.label("operation"):
            (y,) = b.open(b.affine(x, 1, float(i), 8, bound=3.0))
            (z,) = b.open(b.extend(y, 24))
    b.layer("last")
    b.output("y", b.truncate(b.product(z, z, bound=9.0), 8, 16))
    return b.finish()


def test_a_layer_is_named_and_the_others_are_not() -> None:
    program = layers()
    assert program.guarded == ["layer 0", "layer 1"]
    x = torch.zeros((8, 8), dtype=torch.int64)
    for outside, marked in ((0.0, (False, False)), (-40.0, (True, True)), (30.0, (True, True)), (-23.0, (True, False))):
        x[3, 3] = int(outside * 256)
        found = run_mpc(program, {"x": x}).outputs[GUARD]
        if outside == -23.0:  # between zone and certainty in the second layer
            assert found[0] != 0
        else:
            assert tuple((found != 0).tolist()) == marked
            assert tuple((run_plain(program, {"x": x}, {})[GUARD] != 0).tolist()) == marked


def test_without_guards_nothing_is_added() -> None:
    """No step, no output, no byte; with them one round for the key, and two bytes an element from the dealer."""
    bare, watched = layers(guards=False), layers()
    assert GUARD not in bare.outputs and bare.guarded == []
    more, less = watched.cost(), bare.cost()
    assert more.rounds == less.rounds + 1 and more.online == less.online + 16
    assert more.dealer == less.dealer + 2 * 2 * 64  # what an extension gave is not watched


def test_what_the_client_gets_says_no_more_than_the_layer() -> None:
    """Two runs with the same values outside: words differ between runs, layers and parties. Inside, both shares of a
    word are the same up to sign, and fresh in every run."""
    program = layers()
    x = torch.full((8, 8), 35 * 256)
    seen = []
    for values in (x, x, torch.zeros_like(x)):
        run = run_mpc(program, {"x": values})
        first, second = (j.outputs()[GUARD].tolist() for j in run.jobs)
        seen.append((first, second))
    outside = [w for shares in seen[:2] for share in shares for w in share]
    assert len({*outside, *(-w for w in outside)}) == 2 * len(outside)
    first, second = seen[2]
    assert [a + b for a, b in zip(first, second, strict=True)] == [0, 0] and 0 not in first


def test_stages_of_a_job_have_keys_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The common key of a stage is opened under a mask of its own, and is neither party's nor the dealer's choice."""
    keys: list[bytes] = []
    online = Guard.online

    def spy(self: Guard, p: job._PartyContext, k: dict[str, torch.Tensor], *x: object) -> tuple[object, ...]:
        keys.append(x[0].value.numpy().tobytes())  # type: ignore[attr-defined]
        return online(self, p, k, *x)

    monkeypatch.setattr(Guard, "online", spy)
    session = Session({}, {})
    program = layers()
    for _ in range(2):
        session.run(program, {"x": torch.zeros((8, 8), dtype=torch.int64)})
    assert len(keys) == 8 and len(set(keys)) == 2  # of two guards at two parties each

"""The scheduling pass: programs of its making compute the same, in as many rounds as their data flow asks for."""

from __future__ import annotations

import random

import pytest
import torch
from engine import run_mpc
from tiny import small_shapes

from ditto.engine.plain import run_plain
from ditto.engine.plan import Plan
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.schedule import scheduled
from ditto.functions.fixed import b2a, less, mux
from ditto.models import encode_inputs, random_batch, random_model
from ditto.models.encoder import program as encoder
from ditto.models.gpt2 import program as gpt2
from ditto.models.registry import compile_stage
from ditto.ops import Open, Random
from ditto.presets import PRESETS

SHAPE, LAYERS, MOVES = (3, 4), 3, 12


def any_program(seed: int, compare: bool = False) -> Program:
    """Moves at random on 16 bits, exact ones. Some wires are opened again and again, some lead nowhere."""
    rng, b = random.Random(seed), Builder()
    shares = [b.input(name, 16, 0, SHAPE, 50.0) for name in ("x", "y")]
    opened: list[Wire] = []
    for i in range(LAYERS):
        b.layer(f"layer {i}")
        for number in range(MOVES):
            with b.label(f"move {number}"):
                move(rng, b, shares, opened, compare)
    for name in ("a", "b", "c"):
        b.output(name, rng.choice([*shares[2:], *opened]))
    return b.finish()


def move(rng: random.Random, b: Builder, shares: list[Wire], opened: list[Wire], compare: bool) -> None:
    kind = rng.choice(("open", "open", "linear", "product", "compare" if compare else "product"))
    if kind == "open" or not opened:
        opened += b.open(*rng.choices(shares, k=rng.randint(1, 3)))  # one wire may be there twice
    elif kind == "linear":
        shares.append(
            b.add(b.affine(rng.choice(shares), rng.choice((-1, 3)), 5, 0, bound=0.0), rng.choice(shares), bound=0.0)
        )
    elif kind == "product":
        shares.append(b.product(rng.choice(opened), rng.choice(opened), bound=0.0))
    else:
        (bit,) = less(b, b.retype(rng.choice(opened), bound=0.0), [3.0])
        shares += [mux(b, bit, rng.choice(opened)), b2a(b, bit, 16)]


def inputs_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(-50, 50, SHAPE, generator=generator) for name in ("x", "y")}


def longest_way(program: Program, layer: int) -> int:
    """Rounds of a layer if every step ran as soon as what it reads is there, each wire of an opening for itself."""
    makers = {name: (step, i) for step in program.steps for i, name in enumerate(step.outputs) if step.layer == layer}
    wanted = {w.name for w in [*program.outputs.values(), *program.kept.values()]}
    wanted |= {name for step in program.steps if step.layer > layer for name in step.inputs}
    found: dict[str, int] = {}

    def at(name: str) -> int:
        if name not in makers:
            return 0
        if name not in found:
            step, i = makers[name]
            reads = step.inputs[i : i + 1] if isinstance(step.op, Open) else step.inputs
            found[name] = max(map(at, reads), default=0) + step.op.cost().rounds
        return found[name]

    return max(map(at, wanted), default=0)


def check_order(program: Program) -> None:
    """Every wire is there before it is read, and comes from one step."""
    there = {*program.inputs, *program.weights, *program.carried}
    for step in program.steps:
        assert there.issuperset(step.inputs) and there.isdisjoint(step.outputs)
        there.update(step.outputs)
    assert [step.layer for step in program.steps] == sorted(step.layer for step in program.steps)


@pytest.mark.parametrize("seed", range(60))
def test_equal_results_in_as_many_rounds_as_the_longest_way(seed: int) -> None:
    """With comparisons, which have rounds of their own, and without."""
    program = any_program(seed, compare=seed % 2 == 1)
    found = scheduled(program)
    check_order(found)
    inputs = inputs_of(seed)
    want, have = (run_plain(p, inputs, {}) for p in (program, found))
    assert {name: x.tolist() for name, x in have.items()} == {name: x.tolist() for name, x in want.items()}
    for layer in range(LAYERS):
        before, after = program.cost(layer), found.cost(layer)
        assert (after.rounds, after.online, after.dealer) <= (before.rounds, before.online, before.dealer)
        assert after.online <= before.online and after.dealer <= before.dealer
        assert after.rounds == longest_way(found, layer) <= longest_way(program, layer)


@pytest.mark.parametrize("seed", range(0, 60, 9))
def test_shares_compute_it_too(seed: int) -> None:
    program, inputs = scheduled(any_program(seed, compare=seed % 2 == 1)), inputs_of(seed)
    run, want = run_mpc(program, inputs), run_plain(program, inputs, {})
    assert all(torch.equal(run.outputs[name], want[name]) for name in want)
    for layer in range(LAYERS):
        cost = program.cost(layer)
        for ledger in run.ledgers:
            rows = ledger.rows("online", layer)
            assert (sum(r.rounds for r in rows), sum(r.bytes_sent for r in rows)) == (cost.rounds, cost.online)


@pytest.mark.parametrize("seed", range(8))
def test_once_is_enough_and_always_the_same(seed: int) -> None:
    found, mixed = (scheduled(any_program(seed, compare)) for compare in (False, True))
    assert scheduled(found).fingerprint == found.fingerprint
    assert scheduled(any_program(seed, compare=True)).fingerprint == mixed.fingerprint
    assert scheduled(mixed).cost().rounds == mixed.cost().rounds


def test_one_round_for_what_does_not_wait() -> None:
    """Three openings by hand in two chains: two rounds; the label is that of the larger part, the rest of the program
    is as it was."""
    b = Builder()
    x, y = b.input("x", 16, 0, (8,), 50.0), b.input("y", 8, 0, (2,), 50.0)
    b.layer("layer")
    with b.label("short"):
        (small,) = b.open(y)
        b.output("small", b.product(small, small, bound=0.0))
    with b.label("long"):
        (first,) = b.open(x)
        (second,) = b.open(b.product(first, first, bound=0.0))
        b.output("large", b.product(second, second, bound=0.0))
    before = b.finish()
    after = scheduled(before)
    assert (before.cost().rounds, after.cost().rounds) == (3, 2) and before.cost().online == after.cost().online
    assert [step.label for step in after.steps if isinstance(step.op, Open)] == ["long", "long"]
    assert after.steps[0].inputs == ("x", "y")  # the longer chain waits for x
    assert len(after.steps) == len(before.steps) - 1


def test_opened_once_and_nothing_for_nobody() -> None:
    b = Builder()
    x, y = b.input("x", 16, 0, SHAPE, 50.0), b.input("y", 16, 0, SHAPE, 50.0)
    b.layer("one")
    left, unread = b.open(x, y)
    b.output("a", b.product(left, left, bound=0.0))
    b.product(unread, unread, bound=0.0)
    b.layer("two")
    (again,) = b.open(x)
    b.output("b", b.product(left, again, bound=0.0))
    b.output("c", again)
    b.keep("kept", again)
    program = scheduled(b.finish())
    (opening,) = [step for step in program.steps if isinstance(step.op, Open)]
    assert opening.inputs == ("x",) and len(program.steps) == 3
    assert program.outputs["c"].name == program.kept["kept"].name == opening.outputs[0]
    run, want = run_mpc(program, inputs_of(0)), run_plain(program, inputs_of(0), {})
    assert all(torch.equal(run.outputs[name], want[name]) for name in "abc")


def test_each_random_number_is_its_own() -> None:
    """Two steps that look alike are not the same, nor are openings of theirs."""
    b = Builder()
    b.layer("layer")
    drawn = [b.emit(Random(1), [], [(64, 0, (1,), 0.0)])[0] for _ in range(2)]
    for name, wire in zip("ab", drawn, strict=True):
        b.output(name, *b.open(wire))
    program = scheduled(b.finish())
    assert len(program.steps) == 3 and len(program.steps[-1].outputs) == 2


@pytest.mark.parametrize("seed", range(8))
def test_nothing_crosses_a_smaller_unit(seed: int) -> None:
    program = any_program(seed)
    where = {name: i // 7 for i, step in enumerate(program.steps) for name in step.outputs}
    found = scheduled(program, lambda step: where[step.outputs[0]])
    check_order(found)
    units = [{where[name] for name in step.outputs} for step in found.steps]
    assert all(len(unit) == 1 for unit in units) and units == sorted(units, key=min)
    assert found.cost().rounds >= scheduled(program).cost().rounds


@pytest.mark.parametrize("preset", PRESETS)
def test_programs_of_models(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset's encoder, watched: plain results are equal bit for bit, no layer has more rounds, and as many
    openings as its longest way."""
    small_shapes(monkeypatch, 8)
    description, weights, _ = random_model("bert", 1, 8, preset)
    plan = Plan(1, 8, guard=True)
    found = compile_stage(description, plan)
    monkeypatch.setattr(encoder, "scheduled", lambda program: program)
    program = compile_stage(description, plan)
    assert scheduled(program).fingerprint == found.fingerprint and program.guarded == found.guarded
    batch = random_batch(1, 8)
    batch.ids = batch.ids % 64
    inputs = encode_inputs(description, program, batch)
    want, have = (run_plain(p, inputs, weights) for p in (program, found))
    assert all(torch.equal(have[name], x) for name, x in want.items())
    for layer in range(len(found.layers)):
        assert found.cost(layer).rounds <= program.cost(layer).rounds
        assert found.cost(layer).rounds == longest_way(program, layer)
    assert found.cost().rounds < program.cost().rounds  # the guard's key is opened with the first layer's input


@pytest.mark.parametrize("preset", ["ditto", "puma"])
@pytest.mark.parametrize("argmax", [False, True])
def test_programs_of_text_generation(preset: str, argmax: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages: what one keeps is what the next carries."""
    small_shapes(monkeypatch, 8)
    description, _, _ = random_model("gpt2", 1, 8, preset)
    plan = Plan(1, 8, tokens=2, argmax=argmax)
    found = [compile_stage(description, plan, stage) for stage in (0, 1)]
    monkeypatch.setattr(gpt2, "scheduled", lambda program: program)
    for stage, after in enumerate(found):
        before = compile_stage(description, plan, stage)
        check_order(after)
        assert after.kept.keys() == before.kept.keys() and after.carried == before.carried
        for layer in range(len(after.layers)):
            assert after.cost(layer).rounds <= before.cost(layer).rounds
            assert after.cost(layer).rounds == longest_way(before, layer)

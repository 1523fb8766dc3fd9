"""Layers in parts: the same answers and bytes as in one piece, and no more held at once than the bound says."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine import Session, run_mpc
from tiny import small_shapes

from ditto.engine import memory
from ditto.engine.job import PartyJob
from ditto.engine.memory import peak_of
from ditto.engine.parts import MOST, cut
from ditto.engine.plain import run_plain
from ditto.engine.plan import HOLD_MB
from ditto.engine.program import GUARD, PART, Builder, Program
from ditto.errors import LimitExceeded
from ditto.models import Description, Plan, encode_inputs, generator_of, random_model
from ditto.models.compiled import program_for
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Batch, Prompts
from ditto.net.config import Limits
from ditto.ops import Exponential, Harmonic, InverseLines, Matmul, Open, base
from ditto.presets import preset_of
from ditto.service.limits import admit_job

SEQ, TEXTS = 16, 3
HOLD = 50_000  # bytes: less than one text's softmax holds here, so that texts, queries, heads and tokens are all cut
PRESETS = ("ditto", "puma", "secformer")  # of one opening; of full rings with a maximum; of 2Quad, without
GAP = 0.3  # of GPT-2's logits under MPC from the plain interpreter; not derived: as tests/test_gpt2.py has it
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shapes(monkeypatch, SEQ)


def compiled(description: Description, plan: Plan, hold: int, stage: int = 0) -> Program:
    """In parts of so many bytes, which a plan cannot say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "hold", hold)
        return cut(architecture_of(description.architecture).compile(description, plan, stage), hold)


def texts() -> Batch:
    """Of different lengths."""
    ids = torch.randint(0, 64, (TEXTS, SEQ), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    return Batch(ids, torch.zeros_like(ids), mask)


def is_cut(program: Program, whole: Program, hold: int, packs: bool = False) -> None:
    """Costs of the whole but for rounds; parts within the bound, or of one step that is beyond it. What is opened
    or dealt fills its last byte, in each block, and an operation on packed bits (`packs`) its last word."""
    assert len(program.layers) > 4 * len(whole.layers) and not any(PART in name for name in whole.layers)
    cost, one = program.cost(), whole.cost()
    assert cost.rounds > one.rounds
    opened = sum(len(step.inputs) for step in program.steps if isinstance(step.op, Open))
    dealt = sum(len(step.op.dealt()) for step in program.steps)
    assert packs or (0 <= cost.online - one.online < opened and 0 <= cost.dealer - one.dealer < dealt)
    for layer in range(len(program.layers)):
        sizes = [size for step in program.steps if step.layer == layer and (size := step.op.held)]
        assert sum(sizes) <= hold or len(sizes) == 1
    assert all(step.label for step in program.steps)  # what a ledger must have
    order = [step.layer for step in program.steps]
    assert order == sorted(order) and set(order) == set(range(len(program.layers)))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_encoder_in_parts(preset: str) -> None:
    description, weights, _ = random_model("bert", 1, SEQ, preset)
    whole, program = (compiled(description, Plan(TEXTS, SEQ), hold) for hold in (1 << 40, HOLD))
    is_cut(program, whole, HOLD, packs=preset != "ditto")
    inputs = encode_inputs(description, whole, texts())
    want = run_plain(whole, inputs, weights)["hidden"]
    assert torch.equal(run_plain(program, inputs, weights)["hidden"], want)
    real = texts().mask.reshape(-1).bool()
    gap = (run_mpc(program, inputs, weights).outputs["hidden"] - want)[real].abs().max()
    assert gap <= preset_of(preset).ulp


def test_a_generator_in_parts() -> None:
    """The prompts, and a token that reads what they left."""
    description, weights, _ = random_model("gpt2", 1, SEQ)
    gpt2, plan, lengths = generator_of(description.architecture), Plan(2, SEQ, 2), [16, 9]
    whole, parts = ([compiled(description, plan, hold, stage) for stage in range(2)] for hold in (1 << 40, HOLD))
    is_cut(parts[0], whole[0], HOLD)
    inputs = gpt2.encode(description, whole[0], Prompts(texts().ids[:2], lengths))
    later = gpt2.encode_next(description, whole[1], [5, 7], lengths)
    before: Tensors = {}
    carried: Tensors = {}
    session = Session(parts[0].weights, {n: weights[n] for n in parts[0].weights})
    for stage, x in enumerate((inputs, later)):
        want = run_plain(whole[stage], x, weights, before)["logits"]
        assert torch.equal(run_plain(parts[stage], x, weights, carried)["logits"], want)
        gap = (session.run(parts[stage], x).outputs["logits"] - want).abs().max()
        assert math.ldexp(gap, -parts[stage].outputs["logits"].frac) <= GAP


def test_guards_speak_of_layers_not_of_parts() -> None:
    description, weights, _ = random_model("bert", 2, SEQ)
    program = compiled(description, Plan(TEXTS, SEQ, guard=True), HOLD)
    assert program.guarded[-2:] == ["layer 0", "layer 1"] and any(PART in name for name in program.layers)
    words = run_mpc(program, encode_inputs(description, program, texts()), weights).outputs[GUARD]
    assert words.shape == (len(program.guarded),) and not words.any()


# The bound ----------------------------------------------------------------------------------------


def storage(*of: Any) -> Iterator[torch.UntypedStorage]:
    """Of all tensors inside."""
    for x in of:
        if isinstance(x, torch.Tensor):
            yield x.untyped_storage()
        elif isinstance(x, dict):
            yield from storage(*x.values())
        elif hasattr(x, "mask") and hasattr(x, "value"):
            yield from storage(x.mask, x.value)


@pytest.mark.parametrize("hold", [1 << 40, HOLD])
def test_a_party_holds_what_was_estimated(hold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors between two phases, counted once each: within the estimate, and at least a fifth of it, which has room
    for temporaries."""
    monkeypatch.setattr(memory, "ON_THEIR_WAY", 0)
    description, weights, _ = random_model("bert", 2, SEQ)
    program = compiled(description, Plan(TEXTS, SEQ), hold)
    counted: list[int] = []

    def counting(phase: str) -> None:
        real = getattr(PartyJob, phase)

        def counted_too(self: PartyJob, layer: int) -> None:
            real(self, layer)
            if self.party == 0:
                found = {s.data_ptr(): s.nbytes() for s in storage(self._prepared, self._values, self._masks)}
                counted.append(sum(found.values()))

        monkeypatch.setattr(PartyJob, phase, counted_too)

    counting("prepare")
    counting("run")
    run_mpc(program, encode_inputs(description, program, texts()), weights)
    estimate = peak_of(program).party
    assert estimate / 5 <= max(counted) <= estimate


@pytest.mark.parametrize("preset", PRESETS)
def test_a_party_expands_its_own_shares_when_they_are_read(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were no share too small to wait: between the phases a party holds less by what it expands for operations that
    open nothing, at most by all that it expands; and the answer is what the program says."""
    description, weights, _ = random_model("bert", 1, SEQ, preset)
    held: dict[tuple[int, int, int], int] = {}
    real = PartyJob.prepare

    def prepare(self: PartyJob, layer: int) -> None:
        real(self, layer)
        steps = [i for i, step in enumerate(self.program.steps) if step.layer == layer]
        found = {s.data_ptr(): s.nbytes() for i in steps for s in storage(self._prepared.get(i, {}))}
        held[waits, self.party, layer] = sum(found.values())

    monkeypatch.setattr(PartyJob, "prepare", prepare)
    for waits in (1, 1 << 40):
        monkeypatch.setattr(base, "WAITS", waits)
        program = compiled(description, Plan(TEXTS, SEQ), 1 << 40)
        inputs = encode_inputs(description, program, texts())
        want = run_plain(program, inputs, weights)["hidden"]
        gap = (run_mpc(program, inputs, weights).outputs["hidden"] - want)[texts().mask.reshape(-1).bool()]
        assert gap.abs().max() <= preset_of(preset).ulp
    for party in (0, 1):
        assert sum(held[1, party, layer] for layer in range(2)) < sum(held[1 << 40, party, layer] for layer in range(2))
        for layer in range(len(program.layers)):
            steps = [(i, step.op) for i, step in enumerate(program.steps) if step.layer == layer]
            own = [op for i, op in steps if program.seeded[i] == party]
            less = held[1 << 40, party, layer] - held[1, party, layer]
            tables = sum(op.held for op in own if isinstance(op, Harmonic | Exponential | InverseLines | Matmul))
            assert tables <= less <= sum(op.held for op in own if op.opens() == ())


def test_the_estimate_follows_the_bound_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the texts take four times the memory in one piece; in parts it is what enters and leaves a layer that
    grows: inputs, and activations of 16 elements and up to 8 bytes, of which three live at once."""
    monkeypatch.setattr(memory, "ON_THEIR_WAY", 0)
    description, _, _ = random_model("bert", 1, SEQ)
    few, many = 2, 8

    def peaks(hold: int) -> list[tuple[int, int]]:
        return [peak_of(compiled(description, Plan(count, SEQ), hold)) for count in (few, many)]

    whole, parts = peaks(1 << 40), peaks(HOLD)
    for role in (0, 1):
        assert whole[1][role] > 3 * whole[0][role]
    rows = (many - few) * SEQ
    inputs = compiled(description, Plan(1, SEQ), HOLD).inputs["onehot"].nbytes * (many - few)
    for role in (0, 1):
        assert parts[1][role] < parts[0][role] + 2 * inputs + 3 * 8 * 16 * rows
        assert parts[1][role] < whole[1][role] / 4


def test_admission_by_the_estimate_in_parts() -> None:
    """What is too large in one piece runs in parts, if all servers have the same; each says so itself."""
    description, _, _ = random_model("bert", 1, SEQ)
    text, large = description.text(), Limits(hold_mb=1024, max_job_mb=16)
    one, parts = Plan(64, SEQ, hold_mb=1024), Plan(64, SEQ, hold_mb=1)
    for peer in ("coordinator", "party0", "dealer"):
        with pytest.raises(LimitExceeded, match="max_job_mb") as caught:
            admit_job(text, one, program_for(text, one).fingerprint, large, peer)
        assert caught.value.peer == peer and caught.value.exit_code == 34
        admit_job(text, parts, program_for(text, parts).fingerprint, Limits(hold_mb=1, max_job_mb=96), peer)
        with pytest.raises(LimitExceeded, match="hold_mb"):
            admit_job(text, parts, program_for(text, parts).fingerprint, large, peer)


def test_more_parts_than_a_program_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the first layer, before the others are compiled."""
    description, _, _ = random_model("bert", 6, SEQ)
    monkeypatch.setattr(Plan, "hold", 500)
    began = time.thread_time()
    with pytest.raises(LimitExceeded, match=f"at most {MOST:,}"):
        architecture_of(description.architecture).compile(description, Plan(12, SEQ))
    assert time.thread_time() - began < 5


def test_what_needs_no_parts_is_left_alone() -> None:
    b = Builder()
    b.layer("layer 0")
    b.output("y", b.open(b.input("x", 32, 0, (100,), 1.0))[0])
    program = b.finish()
    assert cut(program, 400).fingerprint == program.fingerprint
    assert Limits().hold_mb == HOLD_MB


def test_a_program_is_rolled_back() -> None:
    """What is emitted after a mark and forgotten leaves nothing: as if it had never been."""

    def emitted(forget: bool) -> Builder:
        b = Builder(guards=True)
        b.layer("first")
        x = b.input("x", 16, 4, (3, 4), 7.0)
        b.weight("w", 16, 4, (4, 4), "matrix")
        (opened,) = b.open(b.add(x, x))
        if forget:
            mark = b.mark()
            with b.label("forgotten"):
                b.part()
                b.weight("other", 16, 4, (4, 4), "matrix")
                (again,) = b.open(b.extend(b.open(b.add(opened, opened, bound=7.0))[0], 32))
                b.output("none", again)
            b.layer("second")
            b.back_to(mark)
        b.output("y", b.extend(opened, 32))
        return b

    plain, rolled = (emitted(forget) for forget in (False, True))
    assert rolled.mark() == plain.mark()
    assert rolled.finish() == plain.finish()

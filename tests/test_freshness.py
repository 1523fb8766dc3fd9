"""No stream is expanded twice, and every message of a party's view is uniform: all presets, several jobs and models."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from engine import Session
from tiny import small_shapes
from views import View, watch

from ditto.engine import job, sharing, weights
from ditto.engine.job import _DealerContext, _PartyContext
from ditto.engine.sharing import share
from ditto.functions import softmax
from ditto.models import Plan, compile_stage, encode_inputs, generator_of, random_model
from ditto.models.tokenizer import Batch, Prompts
from ditto.ops import Sketch, guard, sketch
from ditto.presets import PRESETS
from ditto.ring import carrier, dpf
from ditto.ring.prg import Prg, derive, new_seed

Tensor = torch.Tensor
SEQ, TOKENS = 8, 3
ZERO = torch.zeros((2, SEQ), dtype=torch.long)


class Keys:
    """Who expanded which key, and what each was derived from."""

    def __init__(self) -> None:
        self.expanded: Counter[tuple[bytes, str]] = Counter()  # by key and holder
        self.contexts: dict[bytes, set[tuple[Any, ...]]] = defaultdict(set)

    def derive(self, seed: bytes, *context: str | int) -> bytes:
        key = derive(seed, *context)
        self.contexts[key].add((seed, *context))
        return key

    def expand(self, key: bytes) -> None:
        holder = "dealer" if threading.current_thread() is threading.main_thread() else "parties"
        self.expanded[key, holder] += 1

    def twice(self) -> list[tuple[Any, ...]]:
        """What was expanded more often than it has holders, or under two names.

        A step's key has the dealer and one party; an output's, a guard's and a sketch's both parties; any other (a
        share's) is expanded once.
        A weight's mask is the same for all jobs, by design: its key may only have one name.
        """
        kinds = {key: next(iter(names))[1] for key, names in self.contexts.items()}
        allowed = {"step": 1, "output": 2, "guard": 2, "parities": 2}
        found: list[tuple[Any, ...]] = [(key, *names) for key, names in self.contexts.items() if len(names) > 1]
        for (key, holder), times in self.expanded.items():
            kind = kinds.get(key, "other")
            if kind != "weight" and times > allowed.get(kind, 1):
                found.append((kind, holder, times))
        return found


@pytest.fixture()
def keys(monkeypatch: pytest.MonkeyPatch) -> Keys:
    seen, begin = Keys(), Prg.__init__

    def init(self: Prg, key: bytes) -> None:
        seen.expand(key)
        begin(self, key)

    monkeypatch.setattr(Prg, "__init__", init)
    for module in (job, sharing, weights, guard, sketch, dpf):
        monkeypatch.setattr(module, "derive", seen.derive)
    return seen


@pytest.fixture()
def view(monkeypatch: pytest.MonkeyPatch) -> View:
    seen = View()
    watch(monkeypatch, seen.add)
    return seen


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shapes(monkeypatch, SEQ)


def fresh_jobs(model: int, count: int, view: View, *stages: Any, shared: dict[str, Tensor]) -> None:
    """`count` jobs on one sharing of the weights; `stages`: (program, inputs)."""
    first = stages[0][0]
    session = Session(first.weights, {n: shared[n] for n in first.weights}, f"model {model}, job 0")
    for name, opened in session._held[0].masked().items():  # the same at both
        view.add("masked weights", opened, first.weights[name].ring)
    for number in range(count):
        if number:
            session.next_job(f"model {model}, job {number}")
        for program, inputs in stages:
            for name, wire in program.inputs.items():
                view.add("input share of party1", share(name, inputs[name], wire, new_seed()), wire.ring)
            session.run(program, inputs)


@pytest.mark.parametrize("preset", PRESETS)
def test_encoders(preset: str, keys: Keys, view: View) -> None:
    """Two models, two jobs each, on a question of nothing but zeros: what is uniform is so because of its mask."""
    for model in (0, 1):
        description, weights_, _ = random_model("bert", 1, SEQ, preset, seed=model)
        program = compile_stage(description, Plan(2, SEQ, guard=True))
        question = encode_inputs(description, program, Batch(ZERO, ZERO, ZERO + 1))
        fresh_jobs(model, 2, view, (program, question), shared=weights_)
    assert not keys.twice() and not view.check()
    assert view.messages > 200 and sum(k[1] == "dealer" for k in keys.expanded) > 100


def test_an_encoder_with_buckets_by_parities(keys: Keys, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long texts have them."""
    monkeypatch.setattr(softmax, "SAVED", -(1 << 30))
    description, weights_, _ = random_model("bert", 1, SEQ)
    program = compile_stage(description, Plan(2, SEQ, guard=True))
    assert any(isinstance(getattr(step.op, "op", step.op), Sketch) for step in program.steps)
    question = encode_inputs(description, program, Batch(ZERO, ZERO, ZERO + 1))
    fresh_jobs(0, 2, view, (program, question), shared=weights_)
    assert not keys.twice() and not view.check()


@pytest.mark.parametrize("argmax", [False, True])
def test_generation(argmax: bool, keys: Keys, view: View) -> None:
    """Three tokens in three stages over one cache, two jobs, two models."""
    gpt2 = generator_of("GPT2LMHeadModel")
    for model in (0, 1):
        description, weights_, _ = random_model("gpt2", 1, SEQ, seed=model)
        plan, lengths = Plan(2, SEQ, TOKENS, argmax=argmax, guard=True), [SEQ, 5]
        programs = [compile_stage(description, plan, stage) for stage in range(TOKENS)]
        prompts = gpt2.encode(description, programs[0], Prompts(ZERO, lengths))
        later = [
            gpt2.encode_next(description, program, [0, 0], [n + i for n in lengths])
            for i, program in enumerate(programs[1:])
        ]
        fresh_jobs(model, 2, view, *zip(programs, [prompts, *later], strict=True), shared=weights_)
    assert not keys.twice() and not view.check()


# The instruments ----------------------------------------------------------------------------------


def test_a_job_dealt_again_would_be_seen(keys: Keys, view: View) -> None:
    description, weights_, _ = random_model("bert", 1, SEQ)
    program = compile_stage(description, Plan(2, SEQ))
    question = encode_inputs(description, program, Batch(ZERO, ZERO, ZERO + 1))
    session = Session(program.weights, {n: weights_[n] for n in program.weights})
    session.run(program, question)
    assert not keys.twice()
    session._first = 0  # the second stage takes the first one's keys
    session.run(program, question)
    assert {found[:2] for found in keys.twice()} >= {("step", "dealer"), ("step", "parties"), ("output", "parties")}


def test_a_missing_mask_would_be_seen(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    for context in (_DealerContext, _PartyContext):
        monkeypatch.setattr(context, "mask", lambda self, of: torch.zeros(of.shape, dtype=carrier(of.bits)))
    description, weights_, _ = random_model("bert", 1, SEQ)
    program = compile_stage(description, Plan(2, SEQ))
    question = encode_inputs(description, program, Batch(ZERO, ZERO, ZERO + 1))
    fresh_jobs(0, 1, view, (program, question), shared=weights_)
    assert any(text.startswith("opened at") for text in view.check())

"""Time the steps of a program, one role at a time, in this process alone: the dealer's, a party's two phases.

What the peer and the dealer would send is made up, of the right length: a step takes as long for any integers.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch

from ditto.engine.channel import Stream
from ditto.engine.job import DealerJob, PartyJob
from ditto.engine.ledger import Ledger
from ditto.engine.program import Program
from ditto.engine.weights import DealerWeights, PartyWeights
from ditto.ops import Op
from ditto.planning.work import Kind, amount_of, kind_of
from ditto.ring.prg import Prg, new_seed
from ditto.transcript import Transcript

ROLES = ("deal", "prepare", "online")


class Sample(NamedTuple):
    """Steps of one kind in one program: how many, their amount in sum, and seconds of processor time by role."""

    kind: Kind
    steps: int
    amount: int
    seconds: dict[str, float]


class _Echo:
    """A channel to a peer that sends back what it got."""

    def __init__(self) -> None:
        self.payload_sent = 0
        self.framing_sent = 0
        self.transcript = Transcript()

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        return payload

    def stream(self, label: str, sizes: Sequence[int]) -> Stream:
        return _EchoStream()


class _EchoStream:
    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()

    def send(self, piece: bytes | memoryview) -> None:
        self._pieces.append(piece)

    def take(self) -> bytes | memoryview:
        return self._pieces.popleft()


class _Anything:
    """A dealer whose bytes are all the same."""

    def take(self, nbytes: int) -> bytes:
        return bytes(nbytes)


class _Clock:
    """An operation whose faces are timed."""

    def __init__(self, op: Op, spent: dict[str, float]) -> None:
        self._op, self._spent = op, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._op, name)

    def _timed(self, role: str, work: Any, *args: Any) -> Any:
        start = time.thread_time()
        try:
            return work(*args)
        finally:
            self._spent[role] += time.thread_time() - start

    def deal(self, *args: Any) -> Any:
        return self._timed("deal", self._op.deal, *args)

    def prepare(self, *args: Any) -> Any:
        return self._timed("prepare", self._op.prepare, *args)

    def prepared_masks(self, *args: Any) -> Any:
        return self._timed("prepare", self._op.prepared_masks, *args)

    def online(self, *args: Any) -> Any:
        return self._timed("online", self._op.online, *args)

    # whether an operation has an offline part is asked of its class: all are prepared, most of them in no time

    def opens(self) -> Any:
        return self._op.opens()

    def dealt(self) -> Any:
        return self._op.dealt()

    def output_masks(self, *masks: Any) -> Any:
        return self._op.output_masks(*masks)


def stopwatch(program: Program) -> list[Sample]:
    """One job of one program, each role in turn on one thread."""
    spent: dict[Kind, dict[str, float]] = defaultdict(lambda: dict.fromkeys(ROLES, 0.0))
    steps: dict[Kind, int] = defaultdict(int)
    amounts: dict[Kind, int] = defaultdict(int)
    timed = []
    for step in program.steps:
        kind = kind_of(step.op)
        steps[kind] += 1
        amounts[kind] += amount_of(step)
        timed.append(replace(step, op=cast(Op, _Clock(step.op, spent[kind]))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _run(replace(program, steps=timed))
    finally:
        torch.set_num_threads(threads)
    return [Sample(kind, steps[kind], amounts[kind], spent[kind]) for kind in steps]


def _run(program: Program) -> None:
    seed, weights = new_seed(), program.weights
    numbers = Prg(seed)
    dealer = DealerWeights(weights, (seed, seed))
    for name in weights:
        dealer[name]  # masks are expanded once for a model, not for a job
    for _ in DealerJob(program, "timing", (seed, seed), dealer).deal():
        pass
    del dealer
    held = PartyWeights(weights, 0, seed, {name: numbers.ring(w.shape, w.ring) for name, w in weights.items()})
    held.open_masked(_Echo())
    held.warm()
    party = PartyJob(program, 0, "timing", seed, held, _Echo(), _Anything(), Ledger())
    for name, wire in program.inputs.items():
        party.set_input(name, numbers.ring(wire.shape, wire.ring))
    for layer in range(len(program.layers)):
        party.prepare(layer)
        party.run(layer)

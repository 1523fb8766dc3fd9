"""Run a program with two parties in threads and a dealer, over in-memory channels."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ditto.engine.channel import MemoryChannel
from ditto.engine.job import Carried, DealerJob, PartyJob
from ditto.engine.ledger import Ledger
from ditto.engine.program import Program, Wire
from ditto.engine.weights import DealerWeights, PartyWeights
from ditto.ring import signed
from ditto.ring.prg import Prg, new_seed


class QueueSource:
    """Correlations from a queue; counts what it hands out."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[bytes] = queue.Queue()
        self._rest = b""
        self.taken = 0

    def take(self, nbytes: int) -> bytes:
        while len(self._rest) < nbytes:
            self._rest += self.pieces.get(timeout=30)
        out, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        self.taken += nbytes
        return out

    @property
    def left(self) -> int:
        return len(self._rest) + sum(map(len, self.pieces.queue))


@dataclass
class Run:
    outputs: dict[str, torch.Tensor]
    ledgers: list[Ledger]
    sources: list[QueueSource]
    jobs: list[PartyJob]


def split(x: torch.Tensor, bits: int, seed: bytes | None = None) -> list[torch.Tensor]:
    first = Prg(seed or new_seed()).ring(tuple(x.shape), bits)
    return [first, x.to(first.dtype) - first]


Draw = Callable[[str, int], bytes]  # what a seed is for ("model", "job", "weights", "inputs"), and a number: a party's


def anew(_: str, __: int) -> bytes:
    """Every seed a fresh one."""
    return new_seed()


def both(work: Any) -> None:
    """Run work(0) and work(1) in threads; raise what either raised."""
    errors: list[BaseException] = []

    def guarded(party: int) -> None:
        try:
            work(party)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    if errors:
        raise errors[0]


def beside(stages: int = 1, jobs: int = 1) -> tuple[int, int]:
    """(rounds, bytes) that a party sends beside its programs: the common key once a job, transcripts once a stage."""
    return jobs * (1 + stages), jobs * (16 + 32 * stages)


class Session:
    """Both parties and the dealer over memory channels, for the stages of one job."""

    def __init__(
        self, weights: dict[str, Wire], values: dict[str, torch.Tensor], job: str = "job", draw: Draw = anew
    ) -> None:
        self._draw = draw
        self._model = draw("model", 0), draw("model", 1)
        self.channels = MemoryChannel.pair()
        shares = {n: split(w, weights[n].ring, draw("weights", i)) for i, (n, w) in enumerate(values.items())}
        self._held = [PartyWeights(weights, i, self._model[i], {n: s[i] for n, s in shares.items()}) for i in (0, 1)]
        both(lambda i: self._held[i].open_masked(self.channels[i]))
        self._dealer = DealerWeights(weights, self._model)
        self.next_job(job)

    def next_job(self, job: str) -> None:
        """On the same weights, under masks of its own."""
        self.job, self._seeds = job, (self._draw("job", 0), self._draw("job", 1))
        self._masks: dict[str, torch.Tensor] = {}
        self._carried = (Carried(), Carried())
        self._first = 0

    def run(self, program: Program, inputs: dict[str, torch.Tensor]) -> Run:
        """The next stage: deal, run layer by layer; outputs come back reconstructed and signed."""
        sources, ledgers = [QueueSource(), QueueSource()], [Ledger(), Ledger()]
        dealer = DealerJob(program, self.job, self._seeds, self._dealer, self._first, self._masks)
        for party, data in dealer.deal():
            sources[party].pieces.put(data)
        jobs = [
            PartyJob(
                program, i, self.job, self._seeds[i], self._held[i], self.channels[i], sources[i], ledgers[i],
                self._first, self._carried[i],
            )
            for i in (0, 1)
        ]  # fmt: skip
        self._first += len(program.steps)
        for number, (name, x) in enumerate(inputs.items()):
            halves = split(x, program.inputs[name].ring, self._draw("inputs", self._first + number))
            for party_job, share in zip(jobs, halves, strict=True):
                party_job.set_input(name, share)

        shares: list[dict[str, torch.Tensor]] = [{}, {}]

        def work(i: int) -> None:
            for layer in range(len(program.layers)):
                jobs[i].prepare(layer)
                jobs[i].run(layer)
            shares[i] = jobs[i].outputs()

        both(work)
        outputs = {n: signed(shares[0][n] + shares[1][n], w.ring) for n, w in program.outputs.items()}
        return Run(outputs, ledgers, sources, jobs)


def run_mpc(
    program: Program, inputs: dict[str, torch.Tensor], weights: dict[str, torch.Tensor] | None = None, job: str = "job"
) -> Run:
    """Share inputs and weights, deal, run every layer of a job of one stage."""
    return Session(program.weights, weights or {}, job).run(program, inputs)

"""Run a program with two parties in threads and a dealer, over in-memory channels."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Any

import torch

from ditto.channel import Memory
from ditto.ledger import Ledger
from ditto.ops import Masked
from ditto.prg import Prg, new_seed
from ditto.program import Program
from ditto.ring import signed
from ditto.runtime import DealerJob, DealerWeights, PartyJob, PartyWeights


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


def additive(x: Any, party: int) -> torch.Tensor:
    """The additive share that an opened wire stands for: x = m - r."""
    if isinstance(x, Masked):
        return x.value - x.mask if party == 0 else -x.mask
    return x  # type: ignore[no-any-return]


@dataclass
class Run:
    outputs: dict[str, torch.Tensor]
    ledgers: list[Ledger]
    sources: list[QueueSource]
    jobs: list[PartyJob]


def split(x: torch.Tensor, bits: int) -> list[torch.Tensor]:
    first = Prg(new_seed()).ring(tuple(x.shape), bits)
    return [first, x.to(first.dtype) - first]


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


def run_mpc(
    program: Program, inputs: dict[str, torch.Tensor], weights: dict[str, torch.Tensor] | None = None, job: str = "job"
) -> Run:
    """Share inputs and weights, deal, run every layer; outputs come back reconstructed and signed."""
    model, seeds = (new_seed(), new_seed()), (new_seed(), new_seed())
    channels = Memory.pair()
    shares = {name: split(w, program.weights[name].ring) for name, w in (weights or {}).items()}
    held = [PartyWeights(program.weights, i, model[i], {n: s[i] for n, s in shares.items()}) for i in (0, 1)]
    both(lambda i: held[i].open_masked(channels[i]))
    sources, ledgers = [QueueSource(), QueueSource()], [Ledger(), Ledger()]
    for party, data in DealerJob(program, job, seeds, DealerWeights(program.weights, model)).deal():
        sources[party].pieces.put(data)
    jobs = [PartyJob(program, i, job, seeds[i], held[i], channels[i], sources[i], ledgers[i]) for i in (0, 1)]
    for name, x in inputs.items():
        for party_job, share in zip(jobs, split(x, program.inputs[name].ring), strict=True):
            party_job.set_input(name, share)

    def work(i: int) -> None:
        for layer in range(len(program.layers)):
            jobs[i].prepare(layer)
            jobs[i].run(layer)

    both(work)
    a, b = ({n: additive(x, j.party) for n, x in j.outputs().items()} for j in jobs)
    outputs = {n: signed(a[n] + b[n], w.ring) for n, w in program.outputs.items()}
    return Run(outputs, ledgers, sources, jobs)

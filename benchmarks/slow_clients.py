"""Two clients that do what they are told, and on a word do it badly: one stops reading its answer, one sends its inputs
at a trickle. They ask the same jobs either way, so that the difference is the manner and not the work."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.asking import Question, model
from ditto.client.client import Client
from ditto.engine.program import Program, Wire
from ditto.errors import Busy, DittoError
from ditto.net.config import ClientConfig
from ditto.wire import party_pb2

LARGE = 256  # texts: an answer that no window of HTTP/2 holds, so that the party waits for its reader
UNREAD_S = 20.0
PIECE, PAUSE_S = 16, 1.0  # bytes of an input at a time, and seconds between them: below any rate that is asked for


Manner = Callable[[Client, threading.Event], contextlib.AbstractContextManager[None]]


class Slow:
    """Asks until ended; in the manner of `bad` while `badly` is set."""

    def __init__(self, config: ClientConfig, bad: Manner, batch: int) -> None:
        self._config, self._bad = config, bad
        self._question = Question("bert", 0, batch)
        self.badly, self.ended = threading.Event(), threading.Event()
        self.outcomes: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._ask, name="slow")
        self._thread.start()

    def _ask(self) -> None:
        with Client(self._config) as client:
            while not self.ended.is_set():
                manner = "badly" if self.badly.is_set() else "well"
                bad = self._bad(client, self.ended) if self.badly.is_set() else contextlib.nullcontext()
                pause = 0.5
                try:
                    with bad:
                        self._question.ask(client)
                    found = "done"
                except Busy as error:
                    found, pause = error.code, error.retry_s
                except DittoError as error:
                    found = error.code
                self.outcomes[f"{manner}: {found}"] += 1
                self.ended.wait(pause)

    def stop(self) -> None:
        self.ended.set()
        self._thread.join()


@contextlib.contextmanager
def unread(client: Client, ended: threading.Event) -> Iterator[None]:
    """Calls for its answer and takes nothing of it."""
    fetch = client._fetch

    def leave(job: str, stage: int, program: Program, *rest: Any) -> dict[str, torch.Tensor]:
        calls = [
            stub.FetchOutput(party_pb2.FetchOutputRequest(job=job, name=name, stage=stage), timeout=120)
            for stub in client._parties
            for name in program.outputs
        ]
        ended.wait(UNREAD_S)
        for call in calls:
            call.cancel()
        raise DittoError("read nothing")

    client._fetch = leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        client._fetch = fetch  # type: ignore[method-assign]


@contextlib.contextmanager
def trickle(client: Client, ended: threading.Event) -> Iterator[None]:
    """Sends its shares a few bytes at a time."""
    upload = client._upload

    def slowly(job: str, terms: party_pb2.JobTerms, stage: int, program: Program, *rest: Any) -> None:
        name, wire = next(iter(program.inputs.items()))
        client._parties[1].PutInput(drops(job, terms, name, wire, ended), timeout=120)

    def drops(job: str, terms: party_pb2.JobTerms, name: str, wire: Wire, ended: threading.Event) -> Iterator[Any]:
        header = party_pb2.InputHeader(job=job, name=name, ring=wire.ring, shape=list(wire.shape), terms=terms)
        yield party_pb2.PutInputRequest(header=header)
        for offset in range(0, wire.nbytes, PIECE):
            size = min(PIECE, wire.nbytes - offset)
            chunk = party_pb2.TensorChunk(name=name, ring=wire.ring, offset=offset, data=bytes(size))
            yield party_pb2.PutInputRequest(chunk=chunk)
            if ended.wait(PAUSE_S):
                return

    client._upload = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        client._upload = upload  # type: ignore[method-assign]


def both(config: ClientConfig) -> list[Slow]:
    model("bert")
    return [Slow(config, unread, LARGE), Slow(config, trickle, 3)]

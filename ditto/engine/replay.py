"""A party's engine, run again on its recorded view: every message that it would send is compared with what it sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ditto.engine.channel import Stream
from ditto.engine.job import Carried, PartyJob
from ditto.engine.ledger import Ledger
from ditto.engine.program import Program
from ditto.engine.recording import Event, failure, output_digest
from ditto.engine.weights import PartyWeights
from ditto.ring import unpack
from ditto.transcript import Kind, Transcript, digest

# of (round, label, message, sizes of its pieces), as the transcript has it
Digests = Callable[[int, str, bytes | memoryview, Sequence[int]], bytes]
_WORDS = {
    "draw": "own randomness", "taken": "dealt message", "dealt": "dealt message", "sent": "sent message",
    "received": "received message", "output": "output share", "end": "end",
}  # fmt: skip
_CUT = Event("end", "the record says no more")


class Deviation(Exception):
    """The engine does something else than the party did. The text says where, and what."""


class _Over(Exception):
    """The record ends here, or the layer failed here."""


@dataclass
class Account:
    """What was run again, and found to be as recorded."""

    stages: int = 0
    steps: int = 0
    sent: int = 0
    dealt: int = 0
    outputs: int = 0
    failed: str = ""  # the error that the party's work ended with, if it did
    given_up: str = ""  # why the job was, if it was


class _View:
    """The recorded view as an engine's Channel, Source and randomness."""

    payload_sent = framing_sent = 0

    def __init__(self, recorded: Iterator[Event], digests: Digests, account: Account) -> None:
        self._recorded, self._digests, self.account = recorded, digests, account
        self._rounds = 0
        self._last = ""  # the last message that was as recorded
        self.transcript: Transcript = _CheckedTranscript(self)
        self.place = "the beginning"
        self.next = next(recorded, _CUT)

    def advance(self) -> Event:
        """The event that was next; the end stays."""
        found = self.next
        if found.kind != "end":
            self.next = next(self._recorded, _CUT)
        return found

    def deviates(self, what: str) -> NoReturn:
        since = f"; the last message that was as recorded: {self._last}" if self._last else ""
        raise Deviation(f"{self.place}: {what}{since}")

    def _take(self, kind: str, label: str) -> Event:
        if self.next.kind in ("end", "failed"):
            raise _Over
        if self.next.kind != kind or (kind != "taken" and self.next.label != label):
            other = f"{_WORDS.get(self.next.kind, self.next.kind)} {self.next.label!r}"
            self.deviates(f"{_WORDS[kind]} {label!r} is due, the record has {other}")
        return self.advance()

    def agrees(self, kind: str, label: str, found: bytes) -> None:
        if self._take(kind, label).data != found:
            self.deviates(f"{_WORDS[kind]} {label!r} is not the one that was recorded")
        self._last = f"{_WORDS[kind]} {label!r}"

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        number, self._rounds = self._rounds, self._rounds + 1
        self.sent(number, label, bytes(payload), [len(payload)])
        return self.received(number, label)

    def stream(self, label: str, sizes: Sequence[int]) -> Stream:
        number, self._rounds = self._rounds, self._rounds + 1
        return _ViewedStream(self, number, label, sizes)

    def sent(self, number: int, label: str, payload: bytes, sizes: Sequence[int]) -> None:
        self.agrees("sent", label, digest(label, payload))
        self.account.sent += 1
        self.transcript.add("sent", label, self._digests(number, label, payload, sizes))

    def received(self, number: int, label: str, sizes: Sequence[int] = ()) -> bytes:
        """`sizes` of the pieces in which it came, where it was not whole."""
        theirs = bytes(self._take("received", label).data)
        self.transcript.add("received", label, self._digests(number, label, theirs, sizes or [len(theirs)]))
        return theirs

    def take(self, nbytes: int) -> bytes:
        data = self._take("taken", f"of {nbytes} bytes").data
        if len(data) != nbytes:
            self.deviates(f"a dealt message of {nbytes} bytes is due, the record has {len(data)}")
        return bytes(data)

    def draw(self) -> bytes:
        return bytes(self._take("draw", "").data)


class _ViewedStream:
    def __init__(self, view: _View, number: int, label: str, sizes: Sequence[int]) -> None:
        self._view, self._of, self._sizes = view, (number, label), sizes
        self._sent: list[bytes | memoryview] = []
        self._received: bytes | None = None
        self._taken = 0

    def send(self, piece: bytes | memoryview) -> None:
        self._sent.append(bytes(piece))
        if len(self._sent) == len(self._sizes):
            self._view.sent(*self._of, b"".join(self._sent), self._sizes)

    def take(self) -> bytes | memoryview:
        if self._received is None:
            self._received = self._view.received(*self._of, self._sizes)
        end = sum(self._sizes[: self._taken + 1])
        piece = memoryview(self._received)[end - self._sizes[self._taken] : end]
        self._taken += 1
        return piece


class _CheckedTranscript(Transcript):
    def __init__(self, view: _View) -> None:
        super().__init__()
        self._view = view

    def add(self, kind: Kind, label: str, digests: bytes) -> None:
        super().add(kind, label, digests)
        if kind == "dealt":
            self._view.agrees("dealt", label, digests)
            self._view.account.dealt += 1


def replay(
    recorded: Iterator[Event],
    party: int,
    job: str,
    weights: PartyWeights,
    program_of: Callable[[int], Program],
    digests: Digests,
    terms: str = "",
) -> Account:
    """Run a party's side of a job again, from its seed on to where its record ends. Raises Deviation.

    `program_of` gives the program of a stage; `weights` are those that the party stores; `terms` as `common_key` has
    them.
    """
    account = Account()
    view = _View(recorded, digests, account)
    if view.next.kind != "seed":
        raise Deviation("the record begins without a seed")
    seed = bytes(view.advance().data)
    carried, first = Carried(terms=terms), 0
    stages: dict[int, PartyJob] = {}
    while view.next.kind != "end":
        event = view.advance()
        view.place = f"{event.kind} {event.label}"
        if event.kind == "stage":
            program = program_of(int(event.label))
            stages[int(event.label)] = PartyJob(
                program, party, job, seed, weights, view, view, Ledger(), first, carried, view.draw
            )
            first += len(program.steps)
            account.stages += 1
            stages.pop(int(event.label) - 2, None)
        elif event.kind in ("input", "prepare", "run", "output"):
            number, name = event.label.split("/", 1)
            _again(view, stages[int(number)], int(number), event, name)
        else:
            view.deviates(f"the record has {_WORDS.get(event.kind, event.kind)} {event.label!r}, nothing is due")
    _check_end(view)
    return account


def _again(view: _View, engine: PartyJob, stage: int, event: Event, name: str) -> None:
    program = engine.program
    if event.kind == "input":
        wire = program.inputs[name]
        engine.set_input(name, unpack(event.data, wire.ring, wire.shape))
    elif event.kind == "output":
        view.place = f"stage {stage}, outputs"
        if output_digest(program, name, engine.outputs()[name]) != event.data:
            view.deviates(f"output share {name!r} is not the one that was recorded")
        view.account.outputs += 1
    else:
        phase = {"prepare": "offline", "run": "online"}[event.kind]
        view.place = f"stage {stage}, layer {name} ({program.layers[int(name)]}), {phase}"
        _layer(view, engine, event.kind, int(name))


def _layer(view: _View, engine: PartyJob, kind: str, layer: int) -> None:
    found = ""
    try:
        (engine.prepare if kind == "prepare" else engine.run)(layer)
        if kind == "run":
            view.account.steps += sum(step.layer == layer for step in engine.program.steps)
    except _Over:
        if view.next.kind == "failed":
            said = view.advance().label
            view.account.failed = view.account.failed or said
        return
    except Deviation:
        raise
    except Exception as error:
        found = failure(error)
    recorded = view.advance().label if view.next.kind == "failed" else ""
    if found != recorded:
        view.deviates(f"the party's work ended with {recorded or 'no error'}, this run with {found or 'none'}")
    view.account.failed = view.account.failed or found


def _check_end(view: _View) -> None:
    end = view.next
    view.account.given_up = end.label
    values = b"".join(view.transcript.value(kind) for kind in ("sent", "received", "dealt"))
    if not end.label and end.data != values:
        view.place = "the end"
        view.deviates("the transcript is not the one that was recorded")

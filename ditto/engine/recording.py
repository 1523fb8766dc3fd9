"""What one party sees of a job, written down event by event as its engine goes, so that `replay` can run it again.

A view is all that decides what the engine does: the party's seed, its shares of inputs, what it draws itself, what the
dealer and the other party send. Of what the engine makes of them (messages sent, shares of outputs) a digest is kept,
and of what is dealt one as it is used.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ditto.engine.channel import Channel, Stream
from ditto.engine.job import Carried, PartyJob, Source
from ditto.engine.ledger import Ledger
from ditto.engine.program import Program
from ditto.engine.weights import PartyWeights
from ditto.errors import DittoError
from ditto.ring import pack
from ditto.ring.prg import new_seed
from ditto.transcript import Kind, Transcript, digest

Write = Callable[[bytes | memoryview], None]
KINDS = (
    "header",  # whose view of which job: `ditto.service.recordings`
    "seed",  # of the job, this party's
    "stage",  # begins
    "input",  # this party's share, packed
    "prepare", "run",  # a layer, as far as the next of these
    "draw",  # 16 bytes of this party's own
    "taken", "dealt",  # bytes from the dealer; the digest of what was used
    "sent", "received",  # a digest; bytes from the other party
    "output",  # the digest of this party's share
    "failed",  # what the layer ended with; empty where the job's end came first
    "end",  # the label says why, for a job that was given up; the digests of its transcript for one that was done
    "omitted",  # in the place of all events, for a job that was too large
)  # fmt: skip
_HEAD = struct.Struct(">BIQ")


class Event(NamedTuple):
    kind: str
    label: str
    data: bytes | memoryview = b""

    def head(self) -> bytes:
        """What goes before its data."""
        label = self.label.encode()
        return _HEAD.pack(KINDS.index(self.kind), len(label), len(self.data)) + label


class Recorder:
    """Takes the events of one job, from the threads that run it and the one that ends it.

    A layer's events are kept together until it ends, one phase's apart from the other's: a later layer may be prepared
    while one runs, and whoever runs the record again does one after the other.
    """

    def __init__(self, write: Write, close: Callable[[], None]) -> None:
        self._write, self._close, self._lock, self._ended = write, close, threading.RLock(), False
        self._open: dict[int, list[Event]] = {}  # by thread

    def add(self, kind: str, label: str = "", data: bytes | memoryview = b"") -> None:
        """Nothing after the end."""
        with self._lock:
            if self._ended:
                return
            layer = self._open.get(threading.get_ident())
            if layer is None:
                self._put(Event(kind, label, data))
            else:
                layer.append(Event(kind, label, bytes(data)))  # whoever used it may go on computing in its memory

    def _put(self, event: Event) -> None:
        self._write(event.head())
        self._write(event.data)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread adds here is written at the end, or at the job's if that comes first."""
        me = threading.get_ident()
        with self._lock:
            self._open[me] = []
        try:
            yield
        finally:
            with self._lock:
                self._flush(me)

    def _flush(self, thread: int) -> None:
        for event in self._open.pop(thread, []):
            self._put(event)

    def end(self, reason: str, transcript: Transcript) -> None:
        """`reason`: why the job was given up, empty for one that was done. A second end is none."""
        values = b"" if reason else b"".join(transcript.value(kind) for kind in ("sent", "received", "dealt"))
        with self._lock:
            for thread in list(self._open):
                self._open[thread].append(Event("failed", ""))  # cut short: nothing else of the layer follows
                self._flush(thread)
            self.add("end", reason, values)
            ended, self._ended = self._ended, True
        if not ended:
            self._close()

    def draw(self) -> bytes:
        drawn = new_seed()
        self.add("draw", data=drawn)
        return drawn


class RecordedChannel:
    """A channel, written down: the digest of a message when it is sent whole, the peer's when all of it is there."""

    def __init__(self, inner: Channel, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder
        self.transcript: Transcript = _RecordedTranscript(inner.transcript, recorder)

    @property
    def payload_sent(self) -> int:
        return self._inner.payload_sent

    @property
    def framing_sent(self) -> int:
        return self._inner.framing_sent

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        self._recorder.add("sent", label, digest(label, payload))
        theirs = self._inner.exchange(label, payload)
        self._recorder.add("received", label, theirs)
        return theirs

    def stream(self, label: str, sizes: Sequence[int]) -> Stream:
        return _RecordedStream(self._inner.stream(label, sizes), self._recorder, label, len(sizes))


class _RecordedStream:
    def __init__(self, inner: Stream, recorder: Recorder, label: str, count: int) -> None:
        self._inner, self._recorder, self._label, self._count = inner, recorder, label, count
        self._sent: list[bytes | memoryview] = []
        self._taken: list[bytes | memoryview] = []

    def send(self, piece: bytes | memoryview) -> None:
        self._sent.append(piece)
        if len(self._sent) == self._count:
            self._recorder.add("sent", self._label, digest(self._label, b"".join(self._sent)))
        self._inner.send(piece)

    def take(self) -> bytes | memoryview:
        piece = self._inner.take()
        self._taken.append(piece)
        if len(self._taken) == self._count:
            self._recorder.add("received", self._label, b"".join(self._taken))
        return piece


class _RecordedTranscript(Transcript):
    """The same transcript; what is dealt comes by here with its label."""

    def __init__(self, inner: Transcript, recorder: Recorder) -> None:
        self._hashes, self._recorder = inner._hashes, recorder

    def add(self, kind: Kind, label: str, digests: bytes) -> None:
        super().add(kind, label, digests)
        if kind == "dealt":
            self._recorder.add("dealt", label, digests)


class RecordedSource:
    def __init__(self, inner: Source, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder

    def take(self, nbytes: int) -> bytes | bytearray | memoryview:
        data = self._inner.take(nbytes)
        self._recorder.add("taken", data=memoryview(data))
        return data


class RecordedJob(PartyJob):
    """A PartyJob, written down. `stage` is which one of its job it is."""

    def __init__(
        self,
        recorder: Recorder,
        stage: int,
        program: Program,
        party: int,
        job: str,
        seed: bytes,
        weights: PartyWeights,
        channel: Channel,
        source: Source,
        ledger: Ledger,
        first: int,
        carried: Carried,
    ) -> None:
        taped, dealt = RecordedChannel(channel, recorder), RecordedSource(source, recorder)
        super().__init__(program, party, job, seed, weights, taped, dealt, ledger, first, carried, recorder.draw)
        self._recorder, self._stage = recorder, stage
        recorder.add("stage", str(stage))

    def set_input(self, name: str, share: torch.Tensor) -> None:
        super().set_input(name, share)
        self._recorder.add("input", f"{self._stage}/{name}", pack(share, self.program.inputs[name].ring))

    def prepare(self, layer: int) -> None:
        with self._entered("prepare", layer):
            super().prepare(layer)

    def run(self, layer: int) -> None:
        with self._entered("run", layer):
            super().run(layer)

    @contextmanager
    def _entered(self, phase: str, layer: int) -> Iterator[None]:
        with self._recorder.together():
            self._recorder.add(phase, f"{self._stage}/{layer}")
            try:
                yield
            except Exception as error:
                self._recorder.add("failed", failure(error))
                raise

    def outputs(self) -> dict[str, torch.Tensor]:
        shares = super().outputs()
        for name, share in shares.items():
            self._recorder.add("output", f"{self._stage}/{name}", output_digest(self.program, name, share))
        return shares


def failure(error: Exception) -> str:
    """How an error is called: alike wherever and whenever it happens again."""
    return error.code if isinstance(error, DittoError) else type(error).__name__


def output_digest(program: Program, name: str, share: torch.Tensor) -> bytes:
    return digest(name, pack(share, program.outputs[name].ring))


def events(pieces: Iterable[bytes | memoryview]) -> Iterator[Event]:
    """What was written, from its pieces however they were cut. Raises ValueError for anything else."""
    reader = _Reader(pieces)
    while head := reader.take(_HEAD.size, may_end=True):
        kind, label, size = _HEAD.unpack(head)
        if kind >= len(KINDS):
            raise ValueError("no event of this version")
        name = bytes(reader.take(label)).decode()
        yield Event(KINDS[kind], name, reader.take(size))


class _Reader:
    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces, self._rest = iter(pieces), memoryview(b"")

    def take(self, size: int, may_end: bool = False) -> bytes:
        """So many bytes; none, if they may end here and do."""
        parts, left = [], size
        while left:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    if may_end and left == size:
                        return b""
                    raise ValueError("cut short")
                self._rest = memoryview(piece)
            parts.append(self._rest[:left])
            self._rest = self._rest[left:]
            left -= len(parts[-1])
        return b"".join(parts)

"""The link between the two parties: one bidirectional stream, many labelled rounds.

Party 1 opens the stream and opens it again when it breaks; party 0 serves it. A `LinkChannel` is one job's view
of the link: `exchange` queues its own frames and only then waits for the peer's, so large payloads flow both ways
at once. A broken link fails every open channel at once and names the peer; the process goes on. Every frame carries a
digest over all that is in it: one that was changed on its way ends its job with an error, or the link where it cannot
be told whose it is. The link may emulate a slower network (ditto.net.emulation).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import structlog

from ditto.errors import (
    CertificateError,
    ClusterError,
    DittoError,
    IntegrityError,
    PeerAbsent,
    PeerLost,
    VersionMismatch,
)
from ditto.net.bulk import Data, Frame
from ditto.net.emulation import Link, Network
from ditto.net.framing import around_frame, frame_digest
from ditto.net.metrics import LinkMetrics
from ditto.net.outbox import Head, Outbox
from ditto.net.transport import CHUNK, from_rpc_error
from ditto.transcript import Transcript
from ditto.wire import party_pb2_grpc

log = structlog.get_logger()
MAX_PAYLOAD = 1 << 31
LARGE = 4 << 20  # bytes of a message from which it says something of the network
MAX_EARLY = 64  # jobs that the peer may have begun before this party opened them


@dataclass
class _Mailbox:
    """What the peer sent for one job: whole messages by round, and the pieces of the one under way."""

    messages: dict[int, tuple[str, Data, bytes]] = field(default_factory=dict)  # label, data, digests
    pieces: list[Data] = field(default_factory=list)
    digests: bytes = b""
    received: int = 0  # of the message under way
    began: float = 0.0  # when its first piece was there
    round: int = 0  # whose message that is
    payload: int = 0  # of all messages
    framing: int = 0
    error: DittoError | None = None
    opened: bool = False


def _offsets(payload: Data) -> range:
    return range(0, len(payload) or 1, CHUNK)


def _digests(frame: Head, payload: Data) -> bytes:
    """Of a message's pieces, one after another."""
    whole = memoryview(payload)
    return b"".join(frame_digest(frame, at, whole[at : at + CHUNK]) for at in _offsets(payload))


def message_digests(job: str, sequence: int, label: str, payload: Data) -> bytes:
    """What a transcript has of a message on the link, sent or received."""
    return _digests(Head(job=job, sequence=sequence, label=label, total=len(payload)), payload)


def _frames(out: Outbox, link: Link, metrics: LinkMetrics) -> Iterator[Frame]:
    """What the stream sends: the pieces of all jobs' messages, each when it would arrive over `link`."""
    for queued, head, data, digest in iter(lambda: out.get(link.leaves), None):
        around = around_frame(head, head.offset, len(data))
        metrics.sent(len(data), around)
        link.hold(queued, len(data) + around)
        head.digest = digest
        yield Frame(head, data)


class PeerLink:
    """Both ends of the link. `me` and `peer` are roles; every state change happens under one condition."""

    def __init__(
        self,
        me: str,
        peer: str,
        connect_timeout: float = 5.0,
        message_timeout: float = 600.0,
        network: Network | None = None,
        metrics: LinkMetrics | None = None,
    ) -> None:
        self.me, self.peer, self.network = me, peer, network
        self.metrics = metrics or LinkMetrics()
        self.metrics.up.set_function(lambda: self.up)
        self.connect_timeout, self.message_timeout = connect_timeout, message_timeout
        self.changed = threading.Condition()
        self._boxes: dict[str, _Mailbox] = {}
        self._closed: dict[str, None] = {}  # finished jobs, oldest first: their late frames are dropped
        self._rates: deque[float] = deque(maxlen=64)  # bytes a second of the last large messages that came
        self._out: Outbox | None = None
        self._trouble: DittoError | None = None
        self._stopping = threading.Event()

    @property
    def up(self) -> bool:
        return self._out is not None

    @property
    def fastest(self) -> float:
        """Bytes a second of the fastest of the last large messages from the peer: what the network does at least."""
        with self.changed:
            return max(self._rates, default=0.0)

    # The stream ---------------------------------------------------------------------------------

    def serve(self, frames: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
        """Party 0's end: the handler of PeerLink.Exchange. A new stream replaces an older one."""
        out = Outbox()
        self._attach(out)
        context.add_callback(lambda: self._detach(out, None))
        context.send_initial_metadata(())
        threading.Thread(target=self._pump, args=(frames, out), name="peer-in", daemon=True).start()
        yield from _frames(out, Link(self.network), self.metrics)

    def dial(self, stub: party_pb2_grpc.PeerLinkStub) -> None:
        """Party 1's end: keep the stream open until `stop`."""

        def loop() -> None:
            while not self._stopping.is_set():
                self._dial_once(stub)
                self._stopping.wait(0.2)

        threading.Thread(target=loop, name="peer-dial", daemon=True).start()

    def _dial_once(self, stub: party_pb2_grpc.PeerLinkStub) -> None:
        out = Outbox()
        call: Any = stub.Exchange(cast(Any, _frames(out, Link(self.network), self.metrics)))  # as net.seal encodes them
        try:
            call.initial_metadata()  # arrives when the peer serves the stream; raises nothing, ends on failure
            if call.is_active():
                self._attach(out)
            self._pump(call, out)
        finally:
            out.put(None)
            call.cancel()

    def _pump(self, frames: Iterator[Frame], out: Outbox) -> None:
        trouble: DittoError | None = None
        try:
            for frame in frames:
                self._receive(frame, out)
        except grpc.RpcError as error:
            trouble = from_rpc_error(error, self.peer)
        except Exception as error:  # the server side raises a bare Exception when the client goes
            trouble = error if isinstance(error, DittoError) else None
        self._detach(out, trouble)

    def _attach(self, out: Outbox) -> None:
        with self.changed:
            old, self._out, self._trouble = self._out, out, None
            if old is not None:
                self._fail_all()
                old.put(None)
            self.changed.notify_all()
        log.info("peer link up", peer=self.peer)

    def _detach(self, out: Outbox, trouble: DittoError | None) -> None:
        out.put(None)
        with self.changed:
            if self._out is out:
                self._out = None
                self._fail_all(trouble)
                log.warning("peer link down", peer=self.peer)
            if self._out is None:
                self._trouble = trouble or self._trouble
            self.changed.notify_all()

    def _fail_all(self, trouble: DittoError | None = None) -> None:
        self._boxes = {job: box for job, box in self._boxes.items() if box.opened}
        error = PeerLost(f"{self.peer} was lost during the job", peer=self.peer)
        for box in self._boxes.values():
            box.error = box.error or (trouble if isinstance(trouble, IntegrityError) else error)

    def stop(self) -> None:
        self._stopping.set()
        with self.changed:
            out = self._out
        if out is not None:
            self._detach(out, None)

    # Frames -------------------------------------------------------------------------------------

    def _receive(self, frame: Frame, out: Outbox) -> None:
        size = len(frame.data)
        around = around_frame(frame, frame.offset, size)
        self.metrics.received(size, around)
        intact = frame.digest == frame_digest(frame, frame.offset, frame.data)  # before others have to wait for it
        with self.changed:
            if self._out is not out:
                return
            box = self._boxes.get(frame.job)
            if not intact:
                what = f"{frame.label!r}, round {frame.sequence}"
                error = IntegrityError(f"{what}: what arrived is not what {self.peer} sent", peer=self.peer)
                if box is None:  # perhaps another job's: only the link's end reaches it
                    raise error
                box.error = box.error or error
                self.changed.notify_all()
                return
            if frame.job in self._closed:
                return
            if box is None:
                if sum(not b.opened for b in self._boxes.values()) >= MAX_EARLY:
                    del self._boxes[next(j for j, b in self._boxes.items() if not b.opened)]
                box = self._boxes[frame.job] = _Mailbox()
            if frame.abort:
                box.error = box.error or ClusterError(f"{self.peer} ended the job: {frame.abort}", peer=self.peer)
                self.changed.notify_all()
                return
            rest = frame.total - box.received
            # pieces come in order, none of them empty but that of an empty message, none beyond the end
            fits = size <= rest and (size or not rest)
            if frame.total > MAX_PAYLOAD or (frame.sequence, frame.offset) != (box.round, box.received) or not fits:
                what = f"{frame.label!r}, round {frame.sequence}"
                due = f"round {box.round} from byte {box.received} was to come"
                box.error = box.error or IntegrityError(
                    f"{what}, from byte {frame.offset}: {due} from {self.peer}", peer=self.peer
                )
                self.changed.notify_all()
                return
            if not box.pieces:
                box.began = time.monotonic()
            box.pieces.append(frame.data)
            box.digests += frame.digest
            box.received += size
            box.payload += size
            box.framing += around
            if box.received >= frame.total:
                if frame.total >= LARGE:
                    seconds = time.monotonic() - box.began
                    self._rates.append((frame.total - len(box.pieces[0])) / max(seconds, 1e-6))
                whole = box.pieces[0] if len(box.pieces) == 1 else memoryview(bytearray().join(box.pieces))
                box.messages[frame.sequence] = (frame.label, whole, box.digests)
                box.pieces, box.digests, box.received, box.round = [], b"", 0, box.round + 1
                self.changed.notify_all()

    def send(self, job: str, sequence: int, label: str, payload: Data) -> tuple[int, bytes]:
        """Queue the frames of one message; returns the bytes that framing adds, and the digests of its pieces.

        They are read from `payload` as they go out: it stays as it is."""
        out, total = self._out, len(payload)
        if out is None:
            raise PeerLost(f"{self.peer} was lost during the job", peer=self.peer)
        frame = Head(job=job, sequence=sequence, label=label, total=total)
        extra = sum(around_frame(frame, at, min(CHUNK, total - at)) for at in _offsets(payload))
        queued, digests = time.monotonic(), _digests(frame, payload)
        out.put((queued, frame, payload, digests))
        return extra, digests

    def receive(self, box: _Mailbox, sequence: int, label: str, until: float | None = None) -> tuple[str, Data, bytes]:
        """The message of a round, when it is there whole: its label, its data, the digests of its pieces. `label` is
        what is awaited, `until` how long (time.monotonic)."""
        deadline = until or time.monotonic() + self.message_timeout
        with self.changed:
            while sequence not in box.messages:
                if box.error is not None:
                    raise box.error
                if time.monotonic() > deadline:
                    raise PeerLost(f"{label!r}, round {sequence}: {self.peer} sent nothing in time", peer=self.peer)
                self.changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))
            return box.messages.pop(sequence)

    # Jobs ---------------------------------------------------------------------------------------

    def open(self, job: str) -> LinkChannel:
        """This party's channel of one job. Waits for the link; raises PeerAbsent when it stays down."""
        deadline = time.monotonic() + self.connect_timeout
        with self.changed:
            while self._out is None:
                if isinstance(self._trouble, (VersionMismatch, CertificateError)):
                    raise self._trouble
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerAbsent(f"{self.peer} does not answer", peer=self.peer)
                self.changed.wait(left)
            box = self._boxes.setdefault(job, _Mailbox())
            box.opened = True
        return LinkChannel(self, job, box)

    def close(self, job: str, reason: str = "") -> None:
        """Forget a job; with a reason, tell the peer and fail whoever waits for it here."""
        with self.changed:
            box = self._boxes.pop(job, None)
            self._closed[job] = None
            if len(self._closed) > 4096:
                del self._closed[next(iter(self._closed))]
            if box is not None and reason:
                box.error = box.error or ClusterError(f"the job was closed: {reason}")
            out = self._out
            self.changed.notify_all()
        if reason and out is not None:
            frame = Head(job=job, abort=reason)
            out.put((time.monotonic(), frame, b"", _digests(frame, b"")))


class LinkChannel:
    """One job's labelled rounds over the link (ditto.engine.channel.Channel), counted at the frame."""

    def __init__(self, link: PeerLink, job: str, box: _Mailbox) -> None:
        self._link, self._job, self._box, self._sequence = link, job, box, 0
        self.rounds = 0
        self.payload_sent = 0
        self.framing_sent = 0
        self.transcript = Transcript()
        self.until: float | None = None  # when the step under way has to be over (time.monotonic)

    @property
    def payload_received(self) -> int:
        return self._box.payload

    @property
    def framing_received(self) -> int:
        return self._box.framing

    def exchange(self, label: str, payload: Data) -> Data:
        """Send `payload`, return the peer's payload of the same round. Both must use the same label."""
        if self._box.error is not None:
            raise self._box.error
        sequence, self._sequence = self._sequence, self._sequence + 1
        framing, sent = self._link.send(self._job, sequence, label, payload)
        self.framing_sent += framing
        self.payload_sent += len(payload)
        theirs, data, received = self._link.receive(self._box, sequence, label, self.until)
        if theirs != label:
            raise DittoError(f"round {sequence}: this party opens {label!r}, {self._link.peer} opens {theirs!r}")
        self.transcript.add("sent", label, sent)
        self.transcript.add("received", label, received)
        self.rounds += 1
        self._link.metrics.rounds.inc()
        return data

    def close(self, reason: str = "") -> None:
        self._link.close(self._job, reason)

"""The link between the two parties: one bidirectional stream, many labelled rounds.

Party 1 opens the stream and opens it again when it breaks; party 0 serves it. `open` gives one job's view of the link
(`ditto.net.link_channel`). A broken link fails every open channel at once and names the peer; the process goes on.
Every frame carries a digest over all that is in it: one that was changed on its way ends its job with an error, or the
link where it cannot be told whose it is. The link may emulate a slower network (ditto.net.emulation).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
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
from ditto.net.bulk import Bulk, Data, Frame
from ditto.net.emulation import Link, Network
from ditto.net.framing import around_frame, frame_digest
from ditto.net.link_channel import LinkChannel, Mailbox, Message
from ditto.net.metrics import LinkMetrics
from ditto.net.outbox import Head, Outbox
from ditto.net.transport import CHUNK, from_rpc_error
from ditto.wire import party_pb2_grpc

log = structlog.get_logger()
MAX_PAYLOAD = 1 << 31
LARGE = 4 << 20  # bytes of a message from which it says something of the network
MAX_EARLY = 64  # jobs that the peer may have begun before this party opened them


def _offsets(payload: Data) -> range:
    return range(0, len(payload) or 1, CHUNK)


def _digests(frame: Head, payload: Data) -> bytes:
    """Of a message's frames, or of those of a piece that begins at `frame.offset`, one after another."""
    if len(payload) <= CHUNK:
        return frame_digest(frame, frame.offset, payload)
    whole, start = memoryview(payload), frame.offset
    return b"".join(frame_digest(frame, start + at, whole[at : at + CHUNK]) for at in _offsets(payload))


def message_digests(job: str, sequence: int, label: str, payload: Data, sizes: Sequence[int]) -> bytes:
    """What a transcript has of a message on the link that goes in pieces of these sizes, sent or received."""
    whole, starts = memoryview(payload), itertools.accumulate(sizes, initial=0)
    return b"".join(
        _digests(Head(job=job, sequence=sequence, label=label, total=len(payload), offset=start), whole[start:end])
        for start, end in itertools.pairwise(starts)
    )


def _frames(out: Outbox, link: Link, metrics: LinkMetrics) -> Iterator[Frame]:
    """What the stream sends: the pieces of all jobs' messages, each when it would arrive over `link`."""
    for queued, head, data, digest in iter(lambda: out.get(link.leaves), None):
        around = around_frame(head, head.offset, len(data))
        metrics.sent(len(data), around)
        link.hold(queued, len(data) + around)
        head.digest = digest
        yield Bulk(head, data)


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
        self._boxes: dict[str, Mailbox] = {}
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
        data, digest = frame.data, frame.digest
        job, label, sequence, offset, total = frame.job, frame.label, frame.sequence, frame.offset, frame.total
        size, around = len(data), around_frame(frame, offset, len(data))
        self.metrics.received(size, around)
        intact = digest == frame_digest(frame, offset, data)  # before others have to wait for it
        with self.changed:
            if self._out is not out:
                return
            box = self._boxes.get(job)
            if not intact:
                what = f"{label!r}, round {sequence}"
                error = IntegrityError(f"{what}: what arrived is not what {self.peer} sent", peer=self.peer)
                if box is None:  # perhaps another job's: only the link's end reaches it
                    raise error
                box.error = box.error or error
                self.changed.notify_all()
                return
            if job in self._closed:
                return
            if box is None:
                if sum(not b.opened for b in self._boxes.values()) >= MAX_EARLY:
                    del self._boxes[next(j for j, b in self._boxes.items() if not b.opened)]
                box = self._boxes[job] = Mailbox()
            if frame.abort:
                box.error = box.error or ClusterError(f"{self.peer} ended the job: {frame.abort}", peer=self.peer)
                self.changed.notify_all()
                return
            rest = total - box.received
            # pieces come in order, of one label and length, none empty but an empty message's, none beyond the end
            fits = size <= rest and (size or not rest)
            message = box.messages[box.round] if box.received else None
            fits = fits and (message is None or (label, total) == (message.label, message.total))
            if total > MAX_PAYLOAD or (sequence, offset) != (box.round, box.received) or not fits:
                what = f"{label!r}, round {sequence}"
                due = f"round {box.round} from byte {box.received} was to come"
                box.error = box.error or IntegrityError(
                    f"{what}, from byte {offset}: {due} from {self.peer}", peer=self.peer
                )
                self.changed.notify_all()
                return
            if message is None:
                message = Message(label, total, time.monotonic(), first=size)
                box.messages[box.round] = message
            message.pieces.append(data)
            message.digests += digest
            message.received += size
            box.received += size
            box.payload += size
            box.framing += around
            if box.received >= total:
                if total >= LARGE:
                    seconds = time.monotonic() - message.began
                    self._rates.append((total - message.first) / max(seconds, 1e-6))
                box.received, box.round = 0, box.round + 1
            self.changed.notify_all()

    def send(
        self, job: str, sequence: int, label: str, payload: Data, offset: int = 0, total: int | None = None
    ) -> tuple[int, bytes]:
        """Queue the frames of one message, or of a piece of one of `total` bytes; returns the bytes that framing adds,
        and the digests of the frames. They are read from `payload` as they go out: it stays as it is."""
        out, size = self._out, len(payload)
        if out is None:
            raise PeerLost(f"{self.peer} was lost during the job", peer=self.peer)
        frame = Head(job=job, sequence=sequence, label=label, total=size if total is None else total, offset=offset)
        extra = sum([around_frame(frame, offset + at, min(CHUNK, size - at)) for at in _offsets(payload)])
        queued, digests = time.monotonic(), _digests(frame, payload)
        out.put((queued, frame, payload, digests))
        return extra, digests

    def receive(
        self, box: Mailbox, sequence: int, label: str, until: float | None = None, upto: int | None = None
    ) -> tuple[Data, Message]:
        """What comes next of the message of a round, and the message: all of it, or as far as byte `upto`, when that is
        there. `label` is what is awaited, `until` how long (time.monotonic)."""
        deadline = until or time.monotonic() + self.message_timeout
        with self.changed:
            while (found := box.messages.get(sequence)) is None or found.received < (
                found.total if upto is None else min(upto, found.total)
            ):
                if box.error is not None:
                    raise box.error
                if time.monotonic() > deadline:
                    raise PeerLost(f"{label!r}, round {sequence}: {self.peer} sent nothing in time", peer=self.peer)
                self.changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))
            end = found.total if upto is None else min(upto, found.total)
            pieces = [found.pieces.popleft()] if not found.total else []
            while found.taken < end:
                piece, wanted = memoryview(found.pieces.popleft()), end - found.taken
                if len(piece) > wanted:
                    found.pieces.appendleft(piece[wanted:])
                pieces.append(piece[:wanted])
                found.taken += len(pieces[-1])
            if found.taken == found.total:
                del box.messages[sequence]
        return pieces[0] if len(pieces) == 1 else memoryview(bytearray().join(pieces)), found

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
            box = self._boxes.setdefault(job, Mailbox())
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

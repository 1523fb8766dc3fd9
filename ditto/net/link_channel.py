"""One job's view of the link between the parties: rounds in order, as `ditto.engine.channel` has them.

`exchange` queues its own frames and only then waits for the peer's, so large payloads flow both ways at once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ditto.errors import BadShare, DittoError
from ditto.net.bulk import Data
from ditto.net.metrics import LinkMetrics
from ditto.transcript import Transcript


@dataclass
class Message:
    """What is there of a message of the peer's."""

    label: str
    total: int
    began: float  # when its first piece was there
    pieces: deque[Data] = field(default_factory=deque)  # that nobody has taken yet
    first: int = 0  # bytes of the first of all
    digests: bytes = b""
    received: int = 0
    taken: int = 0


@dataclass
class Mailbox:
    """What the peer sent for one job, by round."""

    messages: dict[int, Message] = field(default_factory=dict)
    received: int = 0  # of the message under way
    round: int = 0  # whose message that is
    payload: int = 0  # of all messages
    framing: int = 0
    error: DittoError | None = None
    opened: bool = False


class Sending(Protocol):
    """What a channel needs of `ditto.net.peerlink.PeerLink`."""

    peer: str
    metrics: LinkMetrics

    def send(
        self, job: str, sequence: int, label: str, payload: Data, offset: int = 0, total: int | None = None
    ) -> tuple[int, bytes]: ...

    def receive(
        self, box: Mailbox, sequence: int, label: str, until: float | None = None, upto: int | None = None
    ) -> tuple[Data, Message]: ...

    def close(self, job: str, reason: str = "") -> None: ...


class LinkChannel:
    """One job's labelled rounds over the link (ditto.engine.channel.Channel), counted at the frame."""

    def __init__(self, link: Sending, job: str, box: Mailbox) -> None:
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
        data, message = self._link.receive(self._box, sequence, label, self.until)
        self._check(sequence, label, message)
        self.transcript.add("sent", label, sent)
        self._received(label, message)
        return data

    def stream(self, label: str, sizes: Sequence[int]) -> _LinkStream:
        """A round whose message goes in pieces of these sizes, each as soon as it is there (ditto.engine.channel)."""
        if self._box.error is not None:
            raise self._box.error
        sequence, self._sequence = self._sequence, self._sequence + 1
        return _LinkStream(self, sequence, label, sizes)

    def _check(self, sequence: int, label: str, message: Message) -> None:
        if message.label != label:
            peer = self._link.peer
            raise DittoError(f"round {sequence}: this party opens {label!r}, {peer} opens {message.label!r}")

    def _received(self, label: str, message: Message) -> None:
        self.transcript.add("received", label, message.digests)
        self.rounds += 1
        self._link.metrics.rounds.inc()

    def close(self, reason: str = "") -> None:
        self._link.close(self._job, reason)


class _LinkStream:
    """One round of a LinkChannel, piece by piece."""

    def __init__(self, channel: LinkChannel, sequence: int, label: str, sizes: Sequence[int]) -> None:
        self._channel, self._round = channel, (sequence, label)
        self._ends = list(itertools.accumulate(sizes))
        self._sent = self._taken = 0  # pieces
        self._offset = 0
        self._digests = b""

    def send(self, piece: Data) -> None:
        channel, total = self._channel, self._ends[-1]
        framing, digests = channel._link.send(channel._job, *self._round, piece, self._offset, total)
        channel.framing_sent += framing
        channel.payload_sent += len(piece)
        self._digests += digests
        self._sent, self._offset = self._sent + 1, self._offset + len(piece)
        if self._sent == len(self._ends):
            channel.transcript.add("sent", self._round[1], self._digests)

    def take(self) -> Data:
        channel, end = self._channel, self._ends[self._taken]
        data, message = channel._link.receive(channel._box, *self._round, channel.until, end)
        channel._check(*self._round, message)
        if message.total != self._ends[-1]:
            label, expected = self._round[1], self._ends[-1]
            raise BadShare(f"{label}: {message.total} bytes from the peer, expected {expected}")
        self._taken += 1
        if self._taken == len(self._ends):
            channel._received(self._round[1], message)
        return data

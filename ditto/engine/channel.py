"""How two parties exchange bytes: labelled messages, counted where they are framed, and agreed upon at the end."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Protocol

from ditto.errors import BadShare, IntegrityError, PeerLost
from ditto.transcript import DIGEST, Kind, Transcript, digest


class Stream(Protocol):
    """One round under way: its message goes out piece by piece, and comes in piece by piece, of the same sizes.

    All is sent before anything is taken, and all is taken before the next message is sent to its end.
    """

    def send(self, piece: bytes | memoryview) -> None:
        """The next piece. Its memory stays as it is until the peer has it."""

    def take(self) -> bytes | memoryview:
        """The peer's next piece, when it is there. Raises BadShare for a message of another size."""


class Channel(Protocol):
    """One party's end. `payload_sent` counts the bytes of messages, `framing_sent` the labels around them.

    `transcript` takes every message that was sent and received whole.
    """

    transcript: Transcript

    @property
    def payload_sent(self) -> int: ...

    @property
    def framing_sent(self) -> int: ...

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        """Send `payload`, return the peer's message of the same label: one round.

        It may be read until the peer has it: nobody writes to its memory any more. What is returned is the caller's own
        where it can be written to.
        """

    def stream(self, label: str, sizes: Sequence[int]) -> Stream:
        """A round whose message is cut into pieces of these bytes: more than one, none of them empty."""


class MemoryChannel:
    """Both ends in one process, for tests and for the contract of each operation."""

    def __init__(self, out: queue.Queue[tuple[str, bytes]], into: queue.Queue[tuple[str, bytes]]) -> None:
        self._out, self._in = out, into
        self.payload_sent = 0
        self.framing_sent = 0
        self.transcript = Transcript()

    @classmethod
    def pair(cls) -> tuple[MemoryChannel, MemoryChannel]:
        a: queue.Queue[tuple[str, bytes]] = queue.Queue()
        b: queue.Queue[tuple[str, bytes]] = queue.Queue()
        return cls(a, b), cls(b, a)

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        self._out.put((label, bytes(payload)))
        self.payload_sent += len(payload)
        self.framing_sent += len(label)
        theirs = self._receive(label)
        self.transcript.add("sent", label, digest(label, payload))
        self.transcript.add("received", label, digest(label, theirs))
        return theirs

    def stream(self, label: str, sizes: Sequence[int]) -> Stream:
        return _MemoryStream(self, label, sizes)

    def _receive(self, label: str) -> bytes:
        got, theirs = self._in.get(timeout=60)
        if got != label:
            raise PeerLost(f"peer is at {got!r}, this party at {label!r}")
        return theirs


class _MemoryStream:
    """Each piece is a message of its own."""

    def __init__(self, channel: MemoryChannel, label: str, sizes: Sequence[int]) -> None:
        self._channel, self._label, self._sizes = channel, label, sizes
        self._sent: list[bytes] = []
        self._taken: list[bytes] = []
        channel.framing_sent += len(label)

    def send(self, piece: bytes | memoryview) -> None:
        self._sent.append(bytes(piece))
        self._channel._out.put((self._label, self._sent[-1]))
        self._channel.payload_sent += len(piece)
        self._note("sent", self._sent)

    def take(self) -> bytes | memoryview:
        theirs = self._channel._receive(self._label)
        expected = self._sizes[len(self._taken)]
        if len(theirs) != expected:
            raise BadShare(f"{self._label}: {len(theirs)} bytes from the peer, expected {expected}")
        self._taken.append(theirs)
        self._note("received", self._taken)
        return theirs

    def _note(self, kind: Kind, pieces: list[bytes]) -> None:
        if len(pieces) == len(self._sizes):
            self._channel.transcript.add(kind, self._label, digest(self._label, b"".join(pieces)))


def compare_transcripts(channel: Channel, party: int, until: str) -> None:
    """Make sure that each party received what the other sent, from the first message on. One round of 32 bytes.

    1. Party i has two hashes: over what party 0 sent and over what party 1 sent, one as sender, one as receiver.
    2. Both send both, party 0's first.
    3. They are equal, or IntegrityError says whose messages are not what arrived. `until` names the moment.
    """
    # 1
    sent, received = channel.transcript.value("sent"), channel.transcript.value("received")
    mine = sent + received if party == 0 else received + sent
    # 2
    theirs = channel.exchange(f"transcript/{until}", mine)
    # 3
    differ = [i for i in (0, 1) if mine[i * DIGEST : (i + 1) * DIGEST] != theirs[i * DIGEST : (i + 1) * DIGEST]]
    if differ or len(theirs) != len(mine):
        whose = " and ".join(f"party{i}" for i in differ or (1 - party,))
        raise IntegrityError(f"the parties' transcripts differ at the end of {until}: {whose} sent what did not arrive")

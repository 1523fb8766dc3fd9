"""How two parties exchange bytes: labelled messages, counted where they are framed, and agreed upon at the end."""

from __future__ import annotations

import queue
from typing import Protocol

from ditto.errors import IntegrityError, PeerLost
from ditto.transcript import DIGEST, Transcript, digest


class Channel(Protocol):
    """One party's end. `payload_sent` counts the bytes of messages, `framing_sent` the labels around them.

    `transcript` takes every message that was sent and received whole.
    """

    payload_sent: int
    framing_sent: int
    transcript: Transcript

    def exchange(self, label: str, payload: bytes | memoryview) -> bytes | memoryview:
        """Send `payload`, return the peer's message of the same label: one round.

        It may be read until the peer has it: nobody writes to its memory any more. What is returned is the caller's own
        where it can be written to.
        """


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
        got, theirs = self._in.get(timeout=60)
        if got != label:
            raise PeerLost(f"peer is at {got!r}, this party at {label!r}")
        self.transcript.add("sent", label, digest(label, payload))
        self.transcript.add("received", label, digest(label, theirs))
        return theirs


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

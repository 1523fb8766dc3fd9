"""How two parties talk: labelled exchanges, counted where they are framed."""

from __future__ import annotations

import queue
from typing import Protocol

from ditto.errors import PeerLost


class Channel(Protocol):
    """One party's end. `payload_sent` counts the bytes of messages, `framing_sent` the labels around them."""

    payload_sent: int
    framing_sent: int

    def exchange(self, label: str, payload: bytes) -> bytes:
        """Send `payload`, return the peer's message of the same label: one round."""


class MemoryChannel:
    """Both ends in one process, for tests and for the contract of each operation."""

    def __init__(self, out: queue.Queue[tuple[str, bytes]], into: queue.Queue[tuple[str, bytes]]) -> None:
        self._out, self._in = out, into
        self.payload_sent = 0
        self.framing_sent = 0

    @classmethod
    def pair(cls) -> tuple[MemoryChannel, MemoryChannel]:
        a: queue.Queue[tuple[str, bytes]] = queue.Queue()
        b: queue.Queue[tuple[str, bytes]] = queue.Queue()
        return cls(a, b), cls(b, a)

    def exchange(self, label: str, payload: bytes) -> bytes:
        self._out.put((label, payload))
        self.payload_sent += len(payload)
        self.framing_sent += len(label)
        got, theirs = self._in.get(timeout=60)
        if got != label:
            raise PeerLost(f"peer is at {got!r}, this party at {label!r}")
        return theirs

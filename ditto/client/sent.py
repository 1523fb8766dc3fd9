"""What of a job's inputs leaves this client for each party: noted for who asked a question and wants to see it.

Nothing is noted unless a caller passes a `Sent`. Both parties' shares together are the question: keep it no longer than
it is looked at, and log nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ditto.engine.program import Wire
from ditto.engine.sharing import seeded_share
from ditto.ring import unpack
from ditto.wire import party_pb2

KEEP = 16 << 20  # bytes of party 1's share of an input, at most, that are kept to be shown
Counts = npt.NDArray[np.int64]
Elements = npt.NDArray[Any]  # of a ring, in the integers that carry it


@dataclass
class Delivery:
    """To one party, over all stages: its messages, their bytes (under TLS), how often each byte value is in shares."""

    messages: int = 0
    nbytes: int = 0
    share_bytes: int = 0
    counts: Counts = field(default_factory=lambda: np.zeros(256, dtype=np.int64))

    def note(self, request: party_pb2.PutInputRequest) -> None:
        self.messages += 1
        self.nbytes += request.ByteSize()
        if share := request.header.seed or request.chunk.data:
            self.share_bytes += len(share)
            self.counts += np.bincount(np.frombuffer(share, dtype=np.uint8), minlength=256)


@dataclass
class Input:
    """One input of the first stage, as it went out: a seed to party 0, bytes to party 1 (none where they are more than
    KEEP)."""

    name: str
    ring: int
    shape: tuple[int, ...]
    seed: bytes = b""
    packed: bytearray = field(default_factory=bytearray)
    first: bytes = b""  # of the same, whatever their number

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    def shares(self) -> tuple[Elements, Elements, Elements] | None:
        """Party 0's share, expanded from its seed as that party does, party 1's, unpacked from the bytes that were
        sent, and their sum mod 2^l: flat, in their carriers, whose bits above a ring's own are 0. None where not all
        bytes were kept."""
        if not self.packed:
            return None
        wire = Wire(self.name, self.ring, 0, self.shape, 0.0)
        zero = seeded_share(self.name, wire, self.seed).numpy().reshape(-1)
        one = unpack(self.packed, self.ring, self.shape).numpy().reshape(-1)
        mask = np.array((1 << self.ring) - 1, dtype=np.uint64).astype(zero.dtype)
        return zero & mask, one & mask, (zero + one) & mask


class Sent:
    """What went to party 0 and to party 1. Each party's messages are noted by one thread at a time."""

    def __init__(self) -> None:
        self.stages = 0
        self.deliveries = (Delivery(), Delivery())
        self.inputs: dict[str, Input] = {}  # of the first stage
        self.terms = party_pb2.JobTerms()  # what both parties are told of the job, in the clear

    def begin(self, stage: int, terms: party_pb2.JobTerms, wires: dict[str, Wire]) -> None:
        """A stage's inputs are about to go out; of the first, those of a job that may be another attempt."""
        self.stages = stage + 1
        if stage == 0:
            self.deliveries, self.terms = (Delivery(), Delivery()), terms
            self.inputs = {name: Input(name, wire.ring, tuple(wire.shape)) for name, wire in wires.items()}

    def noting(self, party: int, requests: Iterator[party_pb2.PutInputRequest]) -> Iterator[party_pb2.PutInputRequest]:
        """The same messages, each noted as it is handed to the transport."""
        for request in requests:
            self.deliveries[party].note(request)
            if self.stages == 1:
                self._keep(request)
            yield request

    def _keep(self, request: party_pb2.PutInputRequest) -> None:
        if seed := request.header.seed:
            self.inputs[request.header.name].seed = seed
        elif data := request.chunk.data:
            kept = self.inputs[request.chunk.name]
            kept.first = kept.first or bytes(data[:4096])
            if request.chunk.total <= KEEP:
                kept.packed += data


def entropy(counts: Counts) -> float:
    """Bits a byte, of bytes that come as often as this; 0 of none."""
    p = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0

"""A sharing as it arrives: packed tensor shares in chunks, checked against the program, digested on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from ditto.engine.program import Wire
from ditto.errors import BadShare
from ditto.net.messages import tensor_chunks
from ditto.ring import pack, unpack
from ditto.wire import party_pb2


class Assembly:
    """One packed tensor share arriving in chunks; checks ring, shape and length against the program."""

    def __init__(self, name: str, wire: Wire | None, ring: int, shape: tuple[int, ...]) -> None:
        if wire is None:
            raise BadShare(f"{name!r} is no tensor of this program")
        if ring != wire.ring or shape != tuple(wire.shape):
            raise BadShare(
                f"{name}: a share of shape {shape} over {ring} bits; expected {tuple(wire.shape)} over {wire.ring}"
            )
        self.name, self.wire = name, wire
        self.total = wire.nbytes
        self._data = bytearray(self.total)
        self._filled = 0

    def add(self, offset: int, data: bytes) -> None:
        if offset != self._filled or offset + len(data) > self.total:
            raise BadShare(f"{self.name}: {offset + len(data)} bytes where {self.total} are expected")
        self._data[offset : offset + len(data)] = data
        self._filled += len(data)

    @property
    def full(self) -> bool:
        return self._filled == self.total

    def tensor(self) -> torch.Tensor:
        if self._filled != self.total:
            raise BadShare(f"{self.name}: {self._filled} of {self.total} bytes received")
        return unpack(self._data, self.wire.ring, tuple(self.wire.shape))


def pieces(name: str, wire: Wire, share: torch.Tensor) -> Iterator[party_pb2.TensorChunk]:
    """A packed share in chunks, in order."""
    return tensor_chunks(name, wire.ring, wire.shape, pack(share, wire.ring))


def hashed(tensors: Iterator[torch.Tensor], wires: dict[str, Wire], found: Any) -> Iterator[torch.Tensor]:
    """The same tensors; `found` has seen them packed, each after its type."""
    for (name, wire), tensor in zip(wires.items(), tensors, strict=True):
        found.update(json.dumps([name, wire.ring, wire.frac, list(wire.shape)]).encode())
        found.update(pack(tensor, wire.ring))
        yield tensor


def receive(
    requests: Iterator[party_pb2.PutModelRequest] | Iterator[party_pb2.FetchShareReply], wires: dict[str, Wire]
) -> Iterator[torch.Tensor]:
    """The shares as they arrive, in the order of the program's weights."""
    chunks = (request.chunk for request in requests)
    for name in wires:
        chunk = next(chunks, None)
        if chunk is None or chunk.name != name:
            raise BadShare(f"the share of {name} is missing")
        part = Assembly(name, wires[name], chunk.ring, tuple(chunk.shape))
        part.add(chunk.offset, chunk.data)
        while not part.full:
            chunk = next(chunks, None)
            if chunk is None or chunk.name != name:
                break
            part.add(chunk.offset, chunk.data)
        yield part.tensor()
    if next(chunks, None) is not None:
        raise BadShare("a share that the program does not know")

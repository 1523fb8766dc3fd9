"""Messages of two streams, correlations and frames, whose `data` protobuf never touches: a megabyte each.

protobuf copies a field of bytes when it is set, encoded, decoded, and each time it is read. Here `data` is joined to
the encoded rest, and cut from it as a view. On the wire it is the same message of the same definition (proto/), with
`data` as its last field; what comes encoded otherwise, protobuf decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from ditto.wire import dealer_pb2, party_pb2

M = TypeVar("M", bound=Message)
Data = bytes | memoryview
_VARINT, _BYTES = 0, 2  # protobuf's wire types that these messages have
_LONGEST = 10  # bytes of a varint


class Bulk(Generic[M]):
    """A message, its `data` apart: `head` is the rest of it."""

    __slots__ = ("data", "head")

    def __init__(self, head: M, data: Data = b"") -> None:
        self.head, self.data = head, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    def SerializeToString(self) -> bytes:
        head = self.head.SerializeToString()
        if not self.data:
            return head
        return b"".join((head, _varint(_tag(type(self.head))), _varint(len(self.data)), self.data))


Frame = Bulk[party_pb2.Frame]
Dealt = Bulk[dealer_pb2.CorrelationsReply]


def _tag(kind: type[Message]) -> int:
    return int(kind.DESCRIPTOR.fields_by_name["data"].number) << 3 | _BYTES


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def encode(message: Bulk[Any] | Message) -> bytes:
    return bytes(message.SerializeToString())


def decoder(kind: type[M]) -> Callable[[bytes], Bulk[M]]:
    """What decodes messages of a kind. Raises protobuf's DecodeError."""
    tag = _tag(kind)

    def decode(encoded: bytes) -> Bulk[M]:
        at, size = _last(encoded, tag)
        if size:
            return Bulk(kind.FromString(encoded[:at]), memoryview(encoded)[-size:])
        whole = kind.FromString(encoded)
        data: bytes = whole.data  # type: ignore[attr-defined]
        whole.ClearField("data")
        return Bulk(whole, data)

    return decode


def _last(encoded: bytes, tag: int) -> tuple[int, int]:
    """Where the field of this tag begins, and the size of its content, if it is the message's last one and there is one
    of it; else (0, 0)."""
    at, end = 0, len(encoded)
    while at < end:
        begin = at
        found, at = _read(encoded, at)
        value, at = _read(encoded, at)
        if found == tag:
            return (begin, value) if at + value == end else (0, 0)
        if found & 7 == _BYTES:
            at += value
        elif found & 7 != _VARINT:
            break
    return 0, 0


def _read(encoded: bytes, at: int) -> tuple[int, int]:
    """A varint, and where the next thing begins; beyond the end there are zeros."""
    if at < len(encoded) and encoded[at] < 128:  # most of them are a byte
        return encoded[at], at + 1
    n = 0
    for place in range(_LONGEST):
        byte = encoded[at + place] if at + place < len(encoded) else 0
        n |= (byte & 127) << (7 * place)
        if byte < 128:
            return n, at + place + 1
    return n, at + _LONGEST

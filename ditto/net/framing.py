"""Framing: the bytes that gRPC puts around payload, in closed form: Message.ByteSize() would encode the payload too.
And the digest that each message of a stream carries over all that is in it.

Counted are protobuf's fields, the 5 bytes before each gRPC message and one HTTP/2 frame header of 9. Further HTTP/2
frames of a large message, TLS and TCP/IP come on top (benchmarks/wire_bytes.py measures them).
"""

from __future__ import annotations

from ditto.net.bulk import Data, Dealt, Frame
from ditto.transcript import DIGEST, digest
from ditto.wire import party_pb2

PREFIX = 5 + 9


def field_size(value: int, length: int = 0) -> int:
    """Bytes of a protobuf field: its tag, `value` as a varint, and `length` bytes that follow. Zero is left out."""
    return 1 + (value.bit_length() + 6) // 7 + length if value else 0


_DIGEST = field_size(DIGEST, DIGEST)


def around_frame(frame: party_pb2.Frame | Frame, offset: int, size: int) -> int:
    """Framing of one piece of `size` bytes at `offset`; the other fields are those of `frame`."""
    around = PREFIX + field_size(size) + _DIGEST
    for text in (frame.job, frame.label, frame.abort):
        if text:
            n = len(text.encode())
            around += field_size(n, n)
    for number in (frame.sequence, offset, frame.total):
        around += field_size(number)
    return around


def around_dealt(reply: Dealt) -> int:
    """Framing of one message of the dealer; the seed counts as framing, and so does the dealing."""
    around = sum(field_size(len(part)) for part in (reply.seed, reply.dealing, reply.data))
    return around + len(reply.seed) + len(reply.dealing) + PREFIX + field_size(DIGEST, DIGEST)


def frame_digest(frame: party_pb2.Frame | Frame, offset: int, data: Data) -> bytes:
    """Of one piece at `offset`: over its data and every other field."""
    return digest(repr((frame.job, frame.sequence, frame.label, offset, frame.total, frame.abort)), data)


def dealt_digest(place: int, seed: bytes, data: Data, dealing: bytes = b"") -> bytes:
    """Of the dealer's message number `place` in its stream."""
    return digest(f"{place} {seed.hex()}{dealing.hex()}", data)

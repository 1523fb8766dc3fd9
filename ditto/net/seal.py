"""A digest on every message that carries none of its own: what changed on its way is no message any more.

TLS sees to that between its two ends. Behind them (a relay that terminates TLS, memory, a library) a flipped bit of a
client's share would be another question, and one of a job's name other correlations, without an error anywhere. Frames
between the parties and the dealer's messages have digests over their place in the stream, too (ditto.net.framing), and
are encoded without a copy in between (ditto.net.bulk).
Against accidents, not against malice: the key is public (ditto.transcript).

1. The sender appends to the encoded message one more field of protobuf: number 15, which no message has, of 16 bytes,
   the digest of the method, the direction and the message.
2. The receiver takes it off before it decodes; IntegrityError if it is not there, or another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from ditto.errors import IntegrityError
from ditto.net import bulk
from ditto.transcript import DIGEST, digest
from ditto.wire import dealer_pb2, party_pb2

FIELD = bytes([15 << 3 | 2, DIGEST])
SEALED = len(FIELD) + DIGEST  # bytes more
_OWN: dict[tuple[str, str], type[Message]] = {  # (method, direction): these carry digests themselves, and much data
    ("/ditto.v1.PeerLink/Exchange", "request"): party_pb2.Frame,
    ("/ditto.v1.PeerLink/Exchange", "reply"): party_pb2.Frame,
    ("/ditto.v1.Dealer/Correlations", "reply"): dealer_pb2.CorrelationsReply,
}
_HEALTH = "/grpc.health.v1.Health/"  # others speak it, too
Coder = Callable[[Any], Any] | None  # what gRPC calls a serializer, and a deserializer; None for bytes


def seal(head: str, data: bytes) -> bytes:
    # 1
    return data + FIELD + digest(head, data)


def unseal(head: str, data: bytes) -> bytes:
    """Raises IntegrityError."""
    # 2
    inner = data[:-SEALED]
    if len(data) < SEALED or data[-SEALED:] != FIELD + digest(head, inner):
        raise IntegrityError(f"{head}: what arrived is not what was sent")
    return inner


def sealing(method: str, way: str, encode: Coder) -> Coder:
    """What encodes messages of a method ("request" or "reply"), with the seal."""
    if (method, way) in _OWN:
        return bulk.encode
    if method.startswith(_HEALTH):
        return encode
    head = f"{method} {way}"
    return lambda message: seal(head, encode(message) if encode else message)


def unsealing(method: str, way: str, decode: Coder) -> Coder:
    """What decodes them. gRPC ends a call whose message it cannot decode, on either side, with a status of its own."""
    if (method, way) in _OWN:
        return bulk.decoder(_OWN[method, way])
    if method.startswith(_HEALTH):
        return decode
    head = f"{method} {way}"

    def call(data: bytes) -> Any:
        inner = unseal(head, data)
        return decode(inner) if decode else inner

    return call


class Seals(grpc.ServerInterceptor):
    """A server's end, around each method's own encoding. A caller of another version is answered as it speaks: it is
    refused for its version."""

    def __init__(self, key: str, version: int) -> None:
        """Calls carry the `version` in their metadata under `key`."""
        self._pair = (key, str(version))

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler, method = continuation(handler_call_details), handler_call_details.method
        if handler is None or self._pair not in [tuple(pair) for pair in handler_call_details.invocation_metadata]:
            return handler
        return handler._replace(
            request_deserializer=unsealing(method, "request", handler.request_deserializer),
            response_serializer=sealing(method, "reply", handler.response_serializer),
        )

"""What arrives on a stream at the end that asked for it: correlations at a party, events at a client, an error."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError, Message

from ditto.client.report import Report
from ditto.engine.ledger import Ledger
from ditto.errors import BY_CODE, DittoError
from ditto.net.bulk import decoder
from ditto.net.framing import dealt_digest
from ditto.net.messages import ledger_to_message
from ditto.net.metrics import PartyMetrics
from ditto.net.transport import CODE_KEY, PEER_KEY, RETRY_KEY, from_rpc_error
from ditto.service.source import DealerSource
from ditto.wire import control_pb2, dealer_pb2, party_pb2
from fuzz.inside import Context, Refused, Stream
from fuzz.protobuf import TEXTS, changed
from fuzz.source import Source, pack, unpack
from fuzz.target import Finding, Target
from fuzz.world import JOB, SHARE, WORDS

SIZES = (3, 8, 5)
_decode = decoder(dealer_pb2.CorrelationsReply)
_METRICS = PartyMetrics()


def _changed(source: Source, messages: list[Message]) -> bytes:
    data = [message.SerializeToString() for message in messages]
    at = source.below(len(data))
    data[at] = changed(source, messages[at], WORDS)
    if source.one_in(4):
        data = data[: source.below(len(data) + 1)]
    elif source.one_in(4):
        data.insert(source.below(len(data)), source.choice(data))
    return pack(data)


def _dealt() -> list[Message]:
    parts = [(bytes(16), b""), *((b"", bytes([i]) * n) for i, n in enumerate(SIZES))]
    return [
        dealer_pb2.CorrelationsReply(seed=seed, data=data, digest=dealt_digest(place, seed, data))
        for place, (seed, data) in enumerate(parts)
    ]


def _dealt_to(given: bytes) -> None:
    """A party takes a seed and as many bytes as were dealt: it has those, or an error."""
    try:
        replies = [_decode(part) for part in unpack(given)]
    except DecodeError:
        return
    stub = type("Stub", (), {"Correlations": lambda *_: Stream(replies)})()
    source = DealerSource(stub, dealer_pb2.CorrelationsRequest(job=JOB, share_id=SHARE), 1.0, _METRICS)
    try:
        source.seed()
        taken = b"".join(bytes(source.take(n)) for n in SIZES)
        if taken != b"".join(bytes([i]) * n for i, n in enumerate(SIZES)):
            raise Finding(f"other correlations than the dealer's: {taken!r}")
    finally:
        source.close()


def _events() -> list[Message]:
    found: list[Message] = []
    for phase, number in (("offline", 1), ("online", 2)):
        ledger = Ledger()
        ledger.add(phase, 0, "open", seconds=0.1, rounds=1, bytes_sent=8)  # type: ignore[arg-type]
        rows = ledger_to_message(ledger.rows(phase, 0))  # type: ignore[arg-type]
        times = [party_pb2.LayerTimes(seconds=0.1, rounds=[party_pb2.Round(operation="open")]) for _ in range(2)]
        found.append(control_pb2.LayerDone(
            layer=0, name="layer 0", phase=number, seconds=0.1, ledgers=[rows, rows],
            times=times if phase == "online" else [],
        ))  # type: ignore[arg-type]  # fmt: skip
    return found


def _report(given: bytes) -> None:
    """A client adds up what the coordinator reports."""
    report = Report()
    try:
        steps = [control_pb2.LayerDone.FromString(part) for part in unpack(given)]
    except DecodeError:
        return
    for step in steps:
        report.add(step)
    report.finish(control_pb2.Done(seconds=1.0, traffic=[party_pb2.Traffic(), party_pb2.Traffic()]))
    report.to_json()


def _error(source: Source) -> bytes:
    texts = (*BY_CODE, *TEXTS[:5], "nan", "-1", "inf")
    return pack([bytes([source.below(17)]), *(source.choice(texts).encode() for _ in range(4))])


def _refused(given: bytes) -> None:
    """A client makes its error of a status and its metadata."""
    context = Context(b"")
    number, *texts = unpack(given) or [b"\0"]
    context.code = list(grpc.StatusCode)[(number or b"\0")[0] % 17]
    context.details, *values = [*(text.decode(errors="replace") for text in texts), "", "", "", ""][:4]
    context.trailing = tuple(zip((CODE_KEY, PEER_KEY, RETRY_KEY), values, strict=True))
    if not isinstance(from_rpc_error(Refused(context), "party0"), DittoError):
        raise Finding("no error")


TARGETS = [
    Target("correlations", lambda source: _changed(source, _dealt()), _dealt_to),
    Target("events", lambda source: _changed(source, _events()), _report),
    Target("errors", _error, _refused),
]

"""Plans and measurements as messages: to and from ditto.wire.

What a peer sends is checked here, before anything is added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ditto.engine.ledger import LayerTimes, Phase, Round, Row
from ditto.engine.plan import Plan
from ditto.errors import DittoError, UsageError
from ditto.net.transport import CHUNK
from ditto.wire import dealer_pb2, party_pb2


def plan_of(message: dealer_pb2.Plan) -> Plan:
    """Raises UsageError for sizes beyond anything that runs."""
    plan = Plan(
        message.batch, message.seq, message.tokens, message.argmax, message.narrow_from, message.every, message.guard,
        message.hold_mb,
    )  # fmt: skip
    if not (1 <= plan.batch <= 4096 and 1 <= plan.seq <= 65536 and 1 <= plan.tokens <= 65536 and plan.hold_mb):
        raise UsageError("batch, sequence length, number of tokens or hold_mb out of range")
    return plan


def to_message(plan: Plan) -> dealer_pb2.Plan:
    return dealer_pb2.Plan(**vars(plan))


_PHASES: dict[Phase, party_pb2.Phase.ValueType] = {
    "offline": party_pb2.PHASE_OFFLINE,
    "online": party_pb2.PHASE_ONLINE,
}


def phase_to_message(phase: Phase) -> party_pb2.Phase.ValueType:
    return _PHASES[phase]


def phase_of(message: party_pb2.Phase.ValueType, peer: str) -> Phase:
    """Raises DittoError for a phase that is absent or unknown."""
    for phase, number in _PHASES.items():
        if number == message:
            return phase
    raise DittoError(f"{peer} sent measurements of no known phase ({message})", peer=peer)


def ledger_to_message(rows: Iterable[Row]) -> party_pb2.Ledger:
    ledger = party_pb2.Ledger()
    for row in rows:
        ledger.rows.add(
            phase=phase_to_message(row.phase), layer=row.layer, operation=row.operation,
            seconds=row.seconds, waiting=row.waiting, rounds=row.rounds,
            bytes_sent=row.bytes_sent, bytes_from_dealer=row.bytes_from_dealer,
        )  # fmt: skip
    return ledger


def ledger_of(message: party_pb2.Ledger, phase: Phase, peer: str) -> list[Row]:
    """The rows of one phase. Raises DittoError for a row of another phase, one without an operation, a second one of an
    operation, and for seconds that are no duration."""
    rows: dict[str, Row] = {}
    for row in message.rows:
        found, operation = phase_of(row.phase, peer), row.operation
        if found != phase or not operation or operation in rows:
            raise DittoError(f"{peer} sent a ledger of {phase} work with a row that does not belong there", peer=peer)
        check_seconds(peer, row.seconds, row.waiting)
        rows[operation] = Row(
            phase=phase, layer=row.layer if row.HasField("layer") else None, operation=operation,
            seconds=row.seconds, waiting=row.waiting, rounds=row.rounds,
            bytes_sent=row.bytes_sent, bytes_from_dealer=row.bytes_from_dealer,
        )  # fmt: skip
    return list(rows.values())


def times_to_message(times: LayerTimes) -> party_pb2.LayerTimes:
    rounds = [party_pb2.Round(**vars(opening)) for opening in times.rounds]
    return party_pb2.LayerTimes(**(vars(times) | {"rounds": rounds}))


def times_of(message: party_pb2.LayerTimes, peer: str) -> LayerTimes:
    """Raises DittoError for moments and durations that are none."""
    check_seconds(peer, message.offline_seconds, message.seconds, *(r.waiting for r in message.rounds))
    if not all(map(math.isfinite, (message.offline_start, message.start, *(r.start for r in message.rounds)))):
        raise DittoError(f"{peer} sent a moment that is none", peer=peer)
    rounds = [Round(r.operation, r.start, r.waiting, r.bytes_sent) for r in message.rounds]
    return LayerTimes(message.offline_start, message.offline_seconds, message.start, message.seconds, rounds)


def check_reply(reply: party_pb2.StepReply, phase: Phase, peer: str) -> None:
    """Does a party's account of a step have all that it should? Raises DittoError."""
    if not reply.HasField("ledger"):
        raise DittoError(f"{peer} sent no ledger of its {phase} work", peer=peer)
    check_seconds(peer, reply.seconds)
    ledger_of(reply.ledger, phase, peer)
    if reply.HasField("times"):
        times_of(reply.times, peer)


def check_seconds(peer: str, *seconds: float) -> None:
    """Raises DittoError for what is no duration."""
    if not all(math.isfinite(s) and s >= 0 for s in seconds):
        raise DittoError(f"{peer} sent seconds that are no duration", peer=peer)


def tensor_chunks(name: str, ring: int, shape: Sequence[int], data: bytes) -> Iterator[party_pb2.TensorChunk]:
    """A packed tensor in chunks, in order."""
    for offset in range(0, len(data) or 1, CHUNK):
        yield party_pb2.TensorChunk(
            name=name, ring=ring, shape=shape, offset=offset, total=len(data), data=data[offset : offset + CHUNK]
        )

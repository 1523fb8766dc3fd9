"""What travels, as protobuf messages and as this library's own types: plans."""

from __future__ import annotations

from ditto.errors import UsageError
from ditto.models.plan import Plan
from ditto.wire import dealer_pb2


def plan_of(message: dealer_pb2.Plan) -> Plan:
    """Raises UsageError for sizes beyond anything that runs."""
    plan = Plan(message.batch, message.seq, message.tokens, message.argmax, message.narrow_from, message.every)
    if not (1 <= plan.batch <= 4096 and 1 <= plan.seq <= 65536 and 1 <= plan.tokens <= 65536):
        raise UsageError("batch, sequence length or number of tokens out of range")
    return plan


def to_message(plan: Plan) -> dealer_pb2.Plan:
    return dealer_pb2.Plan(**vars(plan))

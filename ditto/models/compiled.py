"""Compiled programs, shared by everything in one process: the same public spec gives every process the same program."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from ditto.engine.program import Program, Wire
from ditto.errors import DittoError, UsageError, VersionMismatch
from ditto.models import Plan, compile_stage
from ditto.wire import dealer_pb2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")


def check_name(name: str) -> str:
    """A model name is a plain file name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"bad model name {name[:100]!r}: letters, digits, '.', '_' and '-' only")
    return name


def check_id(value: str) -> str:
    """Jobs and sharings are named by 32 hexadecimal digits."""
    if not _ID.fullmatch(value):
        raise UsageError("bad identifier: 32 hexadecimal digits expected")
    return value


def plan_of(message: dealer_pb2.Plan) -> Plan:
    """Raises UsageError for sizes beyond anything that runs."""
    plan = Plan(message.batch, message.seq, message.tokens, message.argmax, message.narrow_from, message.every)
    if not (1 <= plan.batch <= 4096 and 1 <= plan.seq <= 65536 and 1 <= plan.tokens <= 65536):
        raise UsageError("batch, sequence length or number of tokens out of range")
    return plan


def to_message(plan: Plan) -> dealer_pb2.Plan:
    return dealer_pb2.Plan(**vars(plan))


@lru_cache(maxsize=4)
def _parsed(spec_json: str) -> Any:
    return json.loads(spec_json)


@lru_cache(maxsize=8)
def program_for(spec_json: str, plan: Plan, stage: int = 0, fingerprint: str = "") -> Program:
    """The program of a model for one plan and stage; with a fingerprint, it must be that program."""
    try:
        program = compile_stage(_parsed(spec_json), plan, stage)
    except DittoError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"bad model description: {type(error).__name__}: {error}") from error
    if fingerprint and program.fingerprint != fingerprint:
        raise VersionMismatch("the processes compile this model to different programs: same version everywhere?")
    return program


def generates(spec_json: str) -> bool:
    """Does the model have later stages, of a token each?"""
    return str(_parsed(spec_json).get("architecture")) == "GPT2LMHeadModel"


def weights_of(spec_json: str) -> dict[str, Wire]:
    """The weight tensors of a model; they do not depend on the input size."""
    limit = json.loads(spec_json).get("max_length", 8)
    return program_for(spec_json, Plan(1, min(8, limit) if isinstance(limit, int) else 8)).weights

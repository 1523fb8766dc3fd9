"""Compiled programs, shared by everything in one process: the same public description gives every process the same."""

from __future__ import annotations

import re
from functools import lru_cache

from ditto.engine.program import Program, Wire
from ditto.errors import BadDescription, DittoError, UsageError, VersionMismatch
from ditto.models.description import parse
from ditto.models.plan import Plan
from ditto.models.registry import architecture_of
from ditto.models.registry import generates as generates_by_name
from ditto.wire import dealer_pb2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")
FEW = 8  # tokens: weights do not depend on the input's size


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


@lru_cache(maxsize=8)
def program_for(description: str, plan: Plan, stage: int = 0) -> Program:
    """The program of a model for one plan and stage. Raises BadDescription for a description that compiles to none."""
    found = parse(description)
    try:
        return architecture_of(found.architecture).compile(found, plan, stage)
    except DittoError:
        raise
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise BadDescription(f"a description that does not compile: {type(error).__name__}: {error}") from error


def agreed_program(description: str, plan: Plan, fingerprint: str) -> Program:
    """The first stage's program, which must be the one that the asker means. Raises VersionMismatch."""
    program = program_for(description, plan)
    if program.fingerprint != fingerprint:
        raise VersionMismatch("the processes compile this model to different programs: same version everywhere?")
    return program


def generates(description: str) -> bool:
    """Does the model have later stages, of a token each?"""
    return generates_by_name(parse(description).architecture)


def weights_of(description: str) -> dict[str, Wire]:
    """The weight tensors of a model; they do not depend on the input size."""
    return program_for(description, Plan(1, min(FEW, parse(description).dimensions.positions))).weights

"""Compiled programs, shared by everything in one process: the same public description gives every process the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache

from ditto.engine.parts import cut
from ditto.engine.plan import Plan
from ditto.engine.program import Program, Wire
from ditto.errors import BadDescription, DittoError, VersionMismatch
from ditto.models.description import parse
from ditto.models.registry import architecture_of
from ditto.models.registry import generates as generates_by_name

FEW = 8  # tokens: weights do not depend on the input's size
STEPS = 1 << 16  # of the programs that are kept, in all: some 70 MB, the last 30 tokens of GPT-2's base shape

Asked = tuple[str, Plan, int]
_kept: OrderedDict[Asked, Program] = OrderedDict()  # the one that was asked for last comes last
_lock = threading.Lock()


def program_for(description: str, plan: Plan, stage: int = 0) -> Program:
    """The program of a model for one plan and stage. Raises BadDescription for a description that compiles to none.

    Those that were asked for last are kept, as many as have STEPS together: a job that generates has one for each
    token, which the next job of its plan asks for again.
    """
    asked = description, plan, stage
    with _lock:
        program = _kept.get(asked)
        if program is not None:
            _kept.move_to_end(asked)
            return program
    program = _compiled(description, plan, stage)
    with _lock:
        _kept[asked] = program
        while len(_kept) > 1 and sum(len(kept.steps) for kept in _kept.values()) > STEPS:
            _kept.popitem(last=False)
    return program


def _compiled(description: str, plan: Plan, stage: int) -> Program:
    found = parse(description)
    try:
        return cut(architecture_of(found.architecture).compile(found, plan, stage), plan.hold)
    except DittoError:
        raise
    except Exception as error:  # the sizes and ranges are anybody's: of whatever class, it is the description's fault
        raise BadDescription(f"a description that does not compile: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=64)
def _fingerprint(description: str, plan: Plan) -> str:
    """Of the first stage's program: to take it anew for every request would cost more than most requests."""
    return program_for(description, plan).fingerprint


def agreed_program(description: str, plan: Plan, fingerprint: str) -> Program:
    """The first stage's program, which must be the one that the asker means. Raises VersionMismatch."""
    program = program_for(description, plan)
    if _fingerprint(description, plan) != fingerprint:
        raise VersionMismatch("the processes compile this model to different programs: same version everywhere?")
    return program


def generates(description: str) -> bool:
    """Does the model have later stages, of a token each?"""
    return generates_by_name(parse(description).architecture)


def weights_of(description: str) -> dict[str, Wire]:
    """The weight tensors of a model; they do not depend on the input size."""
    return program_for(description, Plan(1, min(FEW, parse(description).dimensions.positions))).weights

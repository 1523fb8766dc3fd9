"""Compiled programs, shared by everything in one process: the same public description gives every process the same."""

from __future__ import annotations

from functools import lru_cache

from ditto.engine.parts import cut
from ditto.engine.plan import Plan
from ditto.engine.program import Program, Wire
from ditto.errors import BadDescription, DittoError, VersionMismatch
from ditto.models.description import parse
from ditto.models.registry import architecture_of
from ditto.models.registry import generates as generates_by_name

FEW = 8  # tokens: weights do not depend on the input's size


@lru_cache(maxsize=8)
def program_for(description: str, plan: Plan, stage: int = 0) -> Program:
    """The program of a model for one plan and stage. Raises BadDescription for a description that compiles to none."""
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

"""Compiled programs, shared by everything in one process: the same public spec gives every process the same program."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from ditto.engine.program import Program, Wire
from ditto.errors import DittoError, UsageError, VersionMismatch
from ditto.models import Plan, compile_stage


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

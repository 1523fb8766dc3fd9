"""Admission: what a model or a job will take is held against a server's limits before any of it is taken.

Every server checks for itself. Compiling takes no memory that grows with the tensors, so sizes are read from the
compiled program; what would take long to compile is refused before, by its description alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ditto.engine.memory import Peak, held_by_layer, peak_of
from ditto.engine.program import Program, Wire
from ditto.errors import LimitExceeded
from ditto.models import Plan
from ditto.models.compiled import agreed_program, program_for, weights_of
from ditto.models.description import Description, Dimensions, parse
from ditto.net.config import Limits
from ditto.ring import carrier_bytes
from ditto.service.turns import Need

MB = 1 << 20
NARROWEST = 2  # bytes of an element of the narrowest table, of an opened score: what no preset goes below


def _hold(field: str, limit: float, found: float, what: str, peer: str) -> None:
    if found > limit:
        raise LimitExceeded(f"{peer}: {what}; it takes at most {limit:,} ({field})", peer=peer)


def _hold_mb(field: str, limit: int, nbytes: int, what: str, peer: str) -> None:
    _hold(field, limit, nbytes / MB, f"{what} {math.ceil(nbytes / MB):,} MB", peer)


# Models ------------------------------------------------------------------------------------------


def admit_model(description: str, limits: Limits, peer: str) -> dict[str, Wire]:
    """The weight tensors of a model that this server has room for. Raises LimitExceeded, BadDescription.

    1. The description's length, before it is read.
    2. Its layers, which are what compiling takes time for, and a closed form of its weights.
    3. What the compiled program's weights take in memory, exactly.
    """
    # 1
    _hold("max_description_kb", limits.max_description_kb, len(description) / 1024,
          f"a description of {len(description) / 1024:,.0f} kB", peer)  # fmt: skip
    # 2
    d = parse(description).dimensions
    _hold("max_layers", limits.max_layers, d.layers, f"a model of {d.layers:,} layers", peer)
    what = "a model whose weights take"
    _hold_mb("max_model_mb", limits.max_model_mb, NARROWEST * weights_in(d), f"{what} at least", peer)
    # 3
    wires = weights_of(description)
    size = sum(carrier_bytes(wire.shape, wire.ring) for wire in wires.values())
    _hold_mb("max_model_mb", limits.max_model_mb, size, what, peer)
    return wires


def weights_in(d: Dimensions) -> int:
    """Elements of the tables and matrices of a Transformer."""
    tables = (d.vocabulary + d.token_types + d.positions) * d.embedding
    projection = d.embedding * d.hidden if d.embedding != d.hidden else 0
    block = 4 * d.hidden * d.hidden + 2 * d.hidden * d.inner
    return tables + projection + d.layers * block + len(d.labels) * d.hidden


# Jobs --------------------------------------------------------------------------------------------


def admit_job(description: str, plan: Plan, fingerprint: str, limits: Limits, peer: str) -> Program:
    """The first stage's program of a job that this server has room for: `agreed_program`, after the checks.
    Raises LimitExceeded, and what `agreed_program` raises.

    1. Texts and tokens of the plan; parts as large as this server's configuration has them.
    2. A closed form of the largest tensors: one-hot inputs, scores, inner activations.
    3. An estimate of a server's peak memory, from the compiled programs.
    """
    # 1
    _hold("max_batch", limits.max_batch, plan.batch, f"a job of {plan.batch:,} texts", peer)
    tokens = plan.batch * (plan.seq + plan.stages - 1)
    _hold("max_tokens", limits.max_tokens, tokens, f"a job of {tokens:,} tokens in all", peer)
    if plan.hold_mb != limits.hold_mb:
        asked, own = f"a job in parts of {plan.hold_mb:,} MB", f"{limits.hold_mb:,} (hold_mb, alike everywhere)"
        raise LimitExceeded(f"{peer}: {asked}; its own are of {own}", peer=peer)
    # 2
    least = NARROWEST * largest_tensor(parse(description), plan)
    _hold_mb("max_job_mb", limits.max_job_mb, least, "a job that holds at least", peer)
    # 3
    program = agreed_program(description, plan, fingerprint)
    peak = _peak(description, plan)
    need = peak.dealer if peer == "dealer" else peak.party
    if peer == "coordinator":  # it holds nothing of a job, and spares the others the asking
        need = max(peak)
    _hold_mb("max_job_mb", limits.max_job_mb, need, "a job that holds about", peer)
    _hold_mb("jobs_mb", limits.all_jobs >> 20, need, "a job that holds about", peer)
    return program


def need_of(description: str, plan: Plan) -> Need:
    """What a job that was admitted takes of the servers' `jobs_mb`."""
    peak = _peak(description, plan)
    return Need(peak.party, min(peak.waiting, peak.party), peak.dealer)


def need_to_activate(description: str) -> Need:
    """What the activation of a model takes of it on the way; the weights themselves are not of it. They are taken
    tensor by tensor: a share, its mask, what is opened, and either's bytes."""
    most = 4 * max((carrier_bytes(w.shape, w.ring) for w in weights_of(description).values()), default=0)
    return Need(most, most, most)


def largest_tensor(description: Description, plan: Plan) -> int:
    """Elements of the largest tensor that a plan makes of a model, or fewer."""
    d = description.dimensions
    rows = plan.batch * plan.seq
    # a word's row of the table, or of one of blocks, or the block
    words = min(d.vocabulary, math.isqrt(d.vocabulary * d.embedding))
    onehot = 0 if description.embeddings == "public" else rows * words
    return max(onehot, plan.batch * d.heads * plan.seq * (plan.seq + 1) // 2, rows * d.inner)


@lru_cache(maxsize=64)
def dealt_to(description: str, plan: Plan, party: int) -> int:
    """Bytes of correlations that the dealer sends one party for all stages of a job."""
    programs = (program_for(description, plan, stage) for stage in range(plan.stages))
    return sum(
        step.op.received(seeded == party)
        for program in programs
        for step, seeded in zip(program.steps, program.seeded, strict=True)
    )


@lru_cache(maxsize=64)
def _peak(description: str, plan: Plan) -> Peak:
    """Of all stages: the last one reads the longest cache. A later stage is prepared whole while the one before it
    runs; what the last one holds stands for any of them."""
    programs = {stage: program_for(description, plan, stage) for stage in (0, plan.stages - 1)}
    after = sum(held_by_layer(programs[plan.stages - 1])) if plan.stages > 1 else 0
    peaks = [peak_of(program, stage > 0, plan.hold, after) for stage, program in programs.items()]
    return Peak(*(max(of) for of in zip(*peaks, strict=True)))

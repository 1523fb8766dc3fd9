"""Admission: what a model or a job will take is held against a server's limits before any of it is taken.

Every server checks for itself. Compiling takes no memory that grows with the tensors, so sizes are read from the
compiled program; what would take long to compile is refused before, by its description alone.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ditto.engine.program import Program, Wire
from ditto.errors import LimitExceeded
from ditto.models import Plan
from ditto.models.compiled import agreed_program, program_for, weights_of
from ditto.models.description import Description, Dimensions, parse
from ditto.net.config import Limits
from ditto.ops.base import Shape
from ditto.ring import carrier

MB = 1 << 20
NARROWEST = 2  # bytes of an element of the narrowest table, of an opened score: what no preset goes below
PRODUCT, DEALING = 5, 4  # see `peak_of`
ON_THEIR_WAY = 64 * MB  # of correlations at most, by default


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
    size = sum(_nbytes(wire.shape, wire.ring) for wire in wires.values())
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

    1. Texts and tokens of the plan.
    2. A closed form of the largest tensors: one-hot inputs, scores, inner activations.
    3. An estimate of a server's peak memory, from the compiled programs.
    """
    # 1
    _hold("max_batch", limits.max_batch, plan.batch, f"a job of {plan.batch:,} texts", peer)
    tokens = plan.batch * (plan.seq + plan.stages - 1)
    _hold("max_tokens", limits.max_tokens, tokens, f"a job of {tokens:,} tokens in all", peer)
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
    return program


def largest_tensor(description: Description, plan: Plan) -> int:
    """Elements of the largest tensor that a plan makes of a model, or fewer."""
    d = description.dimensions
    rows = plan.batch * plan.seq
    onehot = 0 if description.embeddings == "public" else rows * d.vocabulary
    return max(onehot, plan.batch * d.heads * plan.seq * (plan.seq + 1) // 2, rows * d.inner)


class Peak(NamedTuple):
    """Bytes that a job is estimated to hold at once, beside the model's weights."""

    party: int
    dealer: int


@lru_cache(maxsize=64)
def _peak(description: str, plan: Plan) -> Peak:
    """Of all stages: the last one reads the longest cache."""
    peaks = [peak_of(program_for(description, plan, stage)) for stage in {0, plan.stages - 1}]
    return Peak(max(p.party for p in peaks), max(p.dealer for p in peaks))


def peak_of(program: Program) -> Peak:
    """An estimate of the most memory that one program's run takes at a party and at the dealer.

    A party has a whole layer prepared: what is dealt, and of what is opened the value and the mask; a product holds its
    operand PRODUCT times more, wider and in digits. The dealer keeps the masks of a layer and makes one operation's
    correlations at a time, DEALING times: masks, values, shares, packed bytes. Both hold what crosses layers (inputs,
    the cache that stages leave to each other) and what is on its way between them.

    Beside what was measured (bert-tiny, 256 to 2,048 tokens in texts of 16 to 256; bert-base, 256 tokens) it is 0.9 to
    2.2 times as large.
    """
    layers = range(len(program.layers))
    opened, dealt, widest = ([0 for _ in layers] for _ in range(3))
    largest = 0
    for step in program.steps:
        masks = [_nbytes(of.shape, of.bits) for opening in step.op.opens() for of in opening.values()]
        pieces = sum(_nbytes(of.shape, of.bits) for of in step.op.dealt().values())
        opened[step.layer] += sum(masks)
        dealt[step.layer] += pieces
        widest[step.layer] = max(widest[step.layer], *masks, 0)
        largest = max(largest, sum(masks) + pieces)
    inputs = sum(_nbytes(wire.shape, wire.ring) for wire in program.inputs.values())
    kept = sum(_nbytes(w.shape, w.ring) for wires in (program.carried, program.kept) for w in wires.values())
    queued = min(sum(dealt), ON_THEIR_WAY)
    party = max(2 * opened[i] + dealt[i] + PRODUCT * widest[i] for i in layers) + inputs + 2 * kept + queued
    dealer = max(opened) + DEALING * largest + kept + queued
    return Peak(party, dealer)


def _nbytes(shape: Shape, bits: int) -> int:
    """As a server holds it: each element in its carrier."""
    return math.prod(shape) * carrier(bits).itemsize

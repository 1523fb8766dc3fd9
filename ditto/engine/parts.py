"""Large layers in parts: what a party prepares at once stays below a bound, whatever the job's size.

A party takes the correlations of one entry of `Program.layers` before it runs it, so memory is bounded by making the
entries small. Independent rows (texts, queries, tokens) are emitted block by block (`in_blocks`), each a part of its
layer, so that no tensor of theirs is larger than a block's; what is still too large is cut between two steps (`cut`).
Both follow from the program and `Plan.hold_mb` alone, hence are the same everywhere. Neither changes what is computed,
nor the dealer's bytes; each block has the rounds of its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from ditto.engine.plan import WHOLE_MB
from ditto.engine.program import PART, Builder, Program, Step, Wire
from ditto.errors import LimitExceeded

LABEL = "blocks"  # of cutting and joining, in the ledger
MOST = 1024  # parts of a program: what compiling it takes time for

Rows = Callable[[Builder, int, int], Sequence[Wire]]


def rows(b: Builder, x: Wire, dim: int, first: int, last: int) -> Wire:
    """x[first:last] along a dimension; x itself where that is all."""
    if (first, last) == (0, x.shape[dim]):
        return x
    with b.label(LABEL):
        return b.view(x, slices=((dim, first, last),))


def in_blocks(b: Builder, hold: int, count: int, emit: Rows, dim: int = 0) -> Sequence[Wire]:
    """What `emit(builder, first, last)` gives for `count` rows, computed in as few equal blocks as keep what a party
    holds for a block within `hold` bytes; the results are joined along `dim`.

    1. Emit all rows. What they hold grows with their number, so the number of blocks follows; with one it is done.
    2. Else forget that, and emit each block as a part of the layer.

    The rows must not depend on each other. Raises LimitExceeded for a program of more than MOST parts.
    """
    # 1
    # blocks within rows that are tried: if these hold little enough, so does each of them
    if b.tries or count == 1 or hold >= WHOLE_MB << 20:
        return emit(b, 0, count)
    mark, first_step = b.mark(), len(b.program.steps)
    b.tries = True
    try:
        whole = emit(b, 0, count)
    finally:
        b.tries = False
    blocks = min(count, -(-sum(step.op.held for step in b.program.steps[first_step:]) // hold))
    if blocks <= 1:
        return whole
    # 2
    b.back_to(mark)
    check_count(len(b.program.layers) + blocks)
    ends = [count * i // blocks for i in range(blocks + 1)]
    done = []
    for first, last in itertools.pairwise(ends):
        b.part()
        done.append(emit(b, first, last))
    b.part()
    with b.label(LABEL):
        return [b.join(*parts, dim=dim) for parts in zip(*done, strict=True)]


def check_count(parts: int) -> None:
    """Raises LimitExceeded for more parts than a program may have."""
    if parts > MOST:
        raise LimitExceeded(f"a job of {parts:,} parts; at most {MOST:,} run: ask fewer texts, or raise hold_mb")


def cut(program: Program, hold: int) -> Program:
    """Cut layers and parts between steps where a party would hold more than `hold` bytes; a single step is left whole.

    Parts are numbered within their layer. Raises LimitExceeded for more than MOST.
    """
    if not program.steps:
        return program
    names: list[str] = []
    steps: list[Step] = []
    numbers: dict[str, int] = {}
    at, filled = -1, 0
    for step in program.steps:
        size = step.op.held
        if step.layer != at or (filled and filled + size > hold):
            at, filled = step.layer, 0
            name = program.layers[at].split(PART)[0]
            number = numbers[name] = numbers.get(name, 0) + 1
            names.append(name if number == 1 else f"{name}{PART}{number}")
        filled += size
        place = len(names) - 1
        steps.append(step if step.layer == place else replace(step, layer=place))
    check_count(len(names))
    return replace(program, layers=names, steps=steps)

"""What a job will hold at a party and at the dealer, read from its program before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ditto.engine.program import Program, Step
from ditto.engine.weights import EXPANDED
from ditto.ops import Open, Widen
from ditto.ops.base import Rearrangement
from ditto.ring import carrier_bytes

TAKING = 2  # times a dealt piece: its bytes, and the same again while they are unpacked
WORKING = 2  # times a step's results: what it packs, receives, converts and multiplies on the way
DEALING = 6  # times what a step deals: masks' integers, values, a share, the difference, its bytes
ON_THEIR_WAY = 64 << 20  # of correlations, by default: 32 MB for each party at the dealer, and 32 MB at a party


class Peak(NamedTuple):
    """Bytes that a job is estimated to hold at once, beside the model's weights."""

    party: int
    dealer: int
    waiting: int = 0  # of a party, until the client's inputs are there: what is prepared for them, and what it has


def held_by_layer(program: Program) -> list[int]:
    """Bytes of correlations that a party holds of each entry of `layers` at most, once it is prepared."""
    held = [0] * len(program.layers)
    for step in program.steps:
        held[step.layer] += step.op.held
    return held


def reach(held: Sequence[int], running: int, hold: int) -> int:
    """The last layer that may be prepared while `running` has not ended: the next one, if both stay within `hold`
    bytes. `held` as `held_by_layer` has it.

    One is enough: preparing takes less time than running where parties wait for each other, and what is prepared
    further ahead is only held for longer.
    """
    return running + 1 if sum(held[running : running + 2]) <= hold else running


def peak_of(program: Program, at_once: bool = False, hold: int = 0, after: int = 0) -> Peak:
    """An estimate of the most memory that one program's run takes.

    A party, part after part: 1. Offline it holds the part's correlations, and TAKING times the largest dealt piece.
    2. Online it holds at each step what the steps from there on need of the correlations, and WORKING times the step's
    results.  3. All along the wires that a later step reads (an opened one twice: masked value and mask), what goes to
    other stages, what is on its way from the dealer, and a share of a weight that is expanded; and the correlations of
    the part that is prepared while one runs, if both fit into `hold` bytes. With `at_once` all parts are prepared
    before the first runs. `after` is what the next stage holds, which is prepared while the last part runs.
    That a party expands some correlations itself, and only when they are read (`Op.waits`), is not counted.

    The dealer: the masks of opened wires that a later step reads, DEALING times what a step takes, and what is queued.
    """
    opened = _opened(program)
    freed = program.frees([*program.outputs.values(), *program.kept.values()])
    sizes = program.sizes | {
        w.name: carrier_bytes(w.shape, w.ring) for w in (program.inputs | program.carried).values()
    }
    live = sum(sizes[w.name] for w in program.inputs.values())
    live += sum(2 * sizes[w.name] for w in program.carried.values())
    masks = sum(sizes[w.name] for w in program.carried.values())
    party = dealer = queued = waiting = 0
    parts: list[list[tuple[Step, list[str]]]] = [[] for _ in range(1 if at_once else len(program.layers))]
    for step, names in zip(program.steps, freed, strict=True):
        parts[0 if at_once else step.layer].append((step, names))
    whole = held_by_layer(program)
    whole = [*([sum(whole)] if at_once else whole), after]
    for number, part in enumerate(parts):
        pieces = [[carrier_bytes(of.shape, of.bits) for of in step.op.dealt().values()] for step, _ in part]
        queued += sum(map(sum, pieces))
        left = sum(step.op.held for step, _ in part)
        ahead = sum(whole[number + 1 : reach(whole, number, hold) + 1])
        # 1
        prepared = live + left + TAKING * max((size for some in pieces for size in some), default=0)
        party = max(party, prepared + ahead)
        waiting = prepared if number == 0 else waiting
        for step, names in part:
            # 2
            size = sum(sizes.get(name, 0) for name in step.outputs)
            results = sum(sizes.get(name, 0) * (1 + (name in opened)) for name in step.outputs)
            party = max(party, live + left + ahead + results + WORKING * size)
            dealer = max(dealer, masks + DEALING * step.op.held)
            live += results
            masks += results - size
            left -= step.op.held
            # 3
            for name in names:
                live -= sizes.get(name, 0) * (1 + (name in opened))
                masks -= sizes.get(name, 0) * (name in opened)
    matrices = [carrier_bytes(w.shape, w.ring) for w in program.weights.values() if w.held == "matrix"]
    party += min(EXPANDED, sum(matrices))  # several may be expanded while an opening is under way
    moving = min(queued, ON_THEIR_WAY)
    return Peak(party + moving // 2, dealer + moving, waiting + moving // 2)


def _opened(program: Program) -> set[str]:
    """Names of the wires that are opened: by an opening, or such with more shares of their masks, or views of such."""
    found = set(program.carried)
    for step in program.steps:
        if isinstance(step.op, Open | Widen) or (isinstance(step.op, Rearrangement) and found.issuperset(step.inputs)):
            found.update(step.outputs)
    return found

"""1/v and 1/sqrt(v) of one positive number a row over many octaves: by lines from tables, one of which a row takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import mux, truncate_to
from ditto.ops import InverseLines, InverseTree, MuxAll, Op, Zones
from ditto.ops.tree import EXACT, TOP
from ditto.ring.exact import ceil_log2, floor_log2

LOW = 6  # bits of v within a bucket
FIRST = 7  # the smallest index that a table answers
JOINED = 5  # index bits of tables of which there are several,
STEP = 2  # octaves from one to the next,
BOUNDARY = 15  # and where the next one takes over, in halves of a bucket: the coarse one answers from 7 on, it up to 30
ALONE = 4  # boundaries between tables that one `Zones` tells apart; more are told apart by several
SPARE = 4  # bits of v's ring beyond the tables', for the guard's closer watches
CARRIED = (BOUNDARY - 1) / BOUNDARY  # of where a table begins to answer: with a carry from there on
DIGITS = 9  # bits of the smallest result
BELOW = 0.96875  # of lo: what the errors of v and of a line leave of it


@dataclass(frozen=True)
class _Layout:
    """v on (ring, frac) as integers, and the tables that cover it: `count` of 2^n entries, coarsest first; or in the
    place of one table a tree of that depth."""

    ring: int
    frac: int
    n: int
    count: int
    tree: bool

    @classmethod
    def of(cls, lo: float, hi: float, single: int | None, root: bool) -> _Layout:
        """For lo <= v <= hi: one table if it has at most 2^single entries, else several of 2^JOINED. None: a tree."""
        frac = ceil_log2((FIRST << LOW) / lo)
        frac += root and frac % 2  # so that the root's scale is a power of two
        largest = math.ldexp(hi, frac) + 3  # a truncation and a carry may each add one
        if single is None:
            n = next(n for n in range(TOP, 64) if largest < (1 << (n + LOW)) - (1 << LOW))  # its last bucket is unused
            return cls(LOW + n + SPARE, frac, n, 1, True)
        n = next(n for n in range(1, 64) if largest <= 1 << (n + LOW))
        count = 1
        if n > single:
            n, count = JOINED, next(k for k in range(1, 64) if largest <= 1 << (JOINED + LOW + STEP * (k - 1)))
        return cls(LOW + n + STEP * (count - 1) + SPARE, frac, n, count, False)

    def shift(self, table: int) -> int:
        return STEP * (self.count - 1 - table)

    def end(self, table: int) -> float:
        """Where a table begins to answer, to within a carry; the next one does below."""
        return math.ldexp(BOUNDARY, LOW - 1 + self.shift(table) - self.frac)

    def dropped(self, table: int, least: float, root: bool) -> int:
        """By how many bits the smallest result of a table is larger than the smallest of all, `least`."""
        if table == 0:
            return 0
        end = self.end(table - 1)
        return max(0, floor_log2((1 / math.sqrt(end) if root else 1 / end) / least))


@dataclass(frozen=True)
class Part:
    """An inverse of the v within `limits`; of others 0."""

    y: Wire
    limits: tuple[float, float]


def inverse(
    b: Builder, v: Wire, lo: float, hi: float, *, root: bool, single: int | None = 0, ring: int = 0,
    alongside: tuple[Wire, ...] = (),
) -> tuple[Wire, list[Wire]]:  # fmt: skip
    """[v^-1], or with `root` [v^-1/2], for lo <= v <= hi, one number a row; and the wires `alongside`, opened.

    2 rounds; 1 where one table of at most 2^single entries covers the range, or where single is None: by a tree of keys
    (`InverseTree`). The smallest result has DIGITS bits; it is on the ring that this needs, or on `ring`, if that is
    larger.
    Relative error of a line at most 1 / (8 FIRST^2), for the root 3 / 8 of that; v is rounded twice to
    1 / (FIRST 2^LOW), by the truncation and by the carry (in a tree, by its q to half of that), and y by 1.5 2^-DIGITS.
    1. Open v, cut to LOW bits within the finest bucket, and what goes alongside: one round.
    2. Each table gives [Y] by the line of v's bucket: local. For one table, or a tree, that is all.
    3. Open the Y and, from v's zones, the bits of which table answers, which is where all of its own are 1. One round.
    4. [y] = sum a Y, a the product of a table's bits.
    """
    layout = _Layout.of(lo, hi, single, root)
    (part,), others = _by_tables(b, v, layout, [range(layout.count)], [(lo, hi)], root, ring, alongside)
    return part.y, others


def reciprocal_in_parts(
    b: Builder, v: Wire, lo: float, hi: float, alongside: tuple[Wire, ...] = ()
) -> tuple[list[Part], list[Wire]]:
    """The same of v^-1 for a range so wide that one type holds no useful digits of all results: as two parts, each with
    a type of its own and DIGITS bits of its smallest result. One of them is the inverse, the other one 0. 2 rounds."""
    layout = _Layout.of(lo, hi, 0, root=False)
    coarse = -(-layout.count // 2)
    if coarse == layout.count:
        return _by_tables(b, v, layout, [range(layout.count)], [(lo, hi)], False, 0, alongside)
    end = layout.end(coarse - 1)
    tables, limits = [range(coarse), range(coarse, layout.count)], [(end * CARRIED, hi), (lo, end)]
    return _by_tables(b, v, layout, tables, limits, False, 0, alongside)


def _by_tables(
    b: Builder, v: Wire, layout: _Layout, parts: list[range], limits: list[tuple[float, float]], root: bool, ring: int,
    alongside: tuple[Wire, ...],
) -> tuple[list[Part], list[Wire]]:  # fmt: skip
    """Inverses for each of these ranges of tables, coarsest first, and within these limits."""
    # 1
    lo, hi = limits[-1][0], limits[0][1]
    v = truncate_to(b, v, layout.frac, layout.ring)
    if v.ring < layout.ring - SPARE:
        raise RangeError(f"{b.place}: from {lo:.3g} to {hi:.3g} takes {layout.ring - SPARE} bits; there are {v.ring}")
    if layout.tree and layout.ring - SPARE > EXACT:
        raise RangeError(f"{b.place}: from {lo:.3g} to {hi:.3g} takes {layout.ring - SPARE} bits; a tree has {EXACT}")
    v, *others = b.open(v, *alongside)
    b.watch(v, 0.0, hi)  # beyond, an index has gone round
    # 2
    tables, rings = [], []
    for part, (low, high) in zip(parts, limits, strict=True):
        most, least = (1 / math.sqrt(end) if root else 1 / end for end in (low * BELOW, high))
        frac = DIGITS - floor_log2(least)
        bits = max(ring, frac + ceil_log2(most) + 2)  # it is extended
        rings.append((bits, most))
        for table in part:
            drop = layout.dropped(table, least, root)
            tables.append(_look_up(b, v, root, layout, table, frac - drop, bits - drop))
    if layout.count == 1:
        return [Part(b.retype(tables[0], bound=rings[0][1]), limits[0])], others
    # 3
    gates = _gates(b, v, layout)
    tables = b.open(*tables)
    # 4
    terms = [_gated(b, bits, y) for bits, y in zip(gates, tables, strict=True)]
    found = []
    for part, (bits, most), ends in zip(parts, rings, limits, strict=True):
        found.append(Part(b.add(*terms[part.start : part.stop], ring=bits, bound=most), ends))
    return found, others


def _look_up(b: Builder, v: Wire, root: bool, layout: _Layout, table: int, frac: int, ring: int) -> Wire:
    """Opened v -> [Y] of one table. Finer ones, whose values are larger, do without what the sum has beyond its ring.

    LOW more bits for the slopes are truncated: local.
    """
    shift = layout.shift(table)
    frac, ring, unit = frac + LOW, ring + LOW, layout.frac - shift  # fraction bits of a window of v
    scale = frac + (unit if not root else unit // 2)
    op: Op = InverseLines(v.shape, v.ring, shift, LOW, layout.n, ring, root, scale, FIRST << LOW)
    if layout.tree:
        op = InverseTree(v.shape, v.ring, LOW, layout.n, ring, root, scale, FIRST << LOW)
    (y,) = b.emit(op, [v], [(ring, frac, v.shape, 0.0)])  # outside of its zones it is no number
    return b.truncate(y, LOW, ring - LOW)


def _gates(b: Builder, v: Wire, layout: _Layout) -> list[tuple[Wire, ...]]:
    """Opened v -> for each table, the opened bits that are all 1 where it answers. One round.

    What tells some boundaries apart looks at no bits of v above them: it counts where all before said "finer"."""
    boundaries = layout.count - 1
    groups = -(-boundaries // ALONE)
    gates: list[tuple[Wire, ...]] = []
    finer: tuple[Wire, ...] = ()
    first = 0
    for left in range(groups, 0, -1):
        last = first - (first - boundaries) // left
        below, *between = _zones(b, v, layout, first, last)
        gates += [(*finer, bit) for bit in reversed(between)]
        finer, first = (*finer, below), last
    return [*gates, finer]


def _zones(b: Builder, v: Wire, layout: _Layout, first: int, last: int) -> list[Wire]:
    """Opened bits: v is below the last of these boundaries, between it and the one before, ..., above the first.

    A boundary `i` is where table i + 1 takes over from table i.
    """
    count = last - first
    n = JOINED + 1 + STEP * (count - 1)  # halves of the last coarse table's buckets, up to the first one's end
    thresholds = (0, *(BOUNDARY << (STEP * i) for i in range(count)), 1 << n)
    op = Zones(v.shape, v.ring, LOW + layout.shift(last - 1) - 1, n, thresholds)
    (bits,) = b.emit(op, [v], [(1, 0, op.out, 1.0)])
    return [b.view(bits, slices=((0, i, i + 1),), shape=v.shape) for i in range(count + 1)]


def _gated(b: Builder, bits: tuple[Wire, ...], y: Wire) -> Wire:
    if len(bits) == 1:
        return mux(b, bits[0], y)
    return b.emit(MuxAll(y.shape, y.ring, len(bits)), [*bits, y], [(y.ring, y.frac, y.shape, y.bound)])[0]

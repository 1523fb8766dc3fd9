"""1/v and 1/sqrt(v) of one positive number a row over many octaves: by lines from tables, one of which a row takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import mux, truncate_to
from ditto.ops import InverseLines, Mux2, Zones
from ditto.ring.exact import ceil_log2, floor_log2

LOW = 6  # bits of v within a bucket
FIRST = 7  # the smallest index that a table answers
JOINED = 5  # index bits of tables of which there are several,
STEP = 2  # octaves from one to the next,
BOUNDARY = 15  # and where the next one takes over, in halves of a bucket: the coarse one answers from 7 on, it up to 30
ALONE = 4  # boundaries between tables that one `Zones` tells apart; more are told apart by two
SPARE = 4  # bits of v's ring beyond the tables', for the guard's closer watches
DIGITS = 9  # bits of the smallest result
BELOW = 0.96875  # of lo: what the errors of v and of a line leave of it


@dataclass(frozen=True)
class _Layout:
    """v on (ring, frac) as integers, and the tables that cover it: `count` of 2^n entries, coarsest first."""

    ring: int
    frac: int
    n: int
    count: int

    @classmethod
    def of(cls, lo: float, hi: float, single: int, root: bool) -> _Layout:
        """For lo <= v <= hi: one table if it has at most 2^single entries, else several of 2^JOINED."""
        frac = ceil_log2((FIRST << LOW) / lo)
        frac += root and frac % 2  # so that the root's scale is a power of two
        largest = math.ldexp(hi, frac) + 3  # a truncation and a carry may each add one
        n = next(n for n in range(1, 64) if largest <= 1 << (n + LOW))
        count = 1
        if n > single:
            n, count = JOINED, next(k for k in range(1, 64) if largest <= 1 << (JOINED + LOW + STEP * (k - 1)))
        return cls(LOW + n + STEP * (count - 1) + SPARE, frac, n, count)

    def shift(self, table: int) -> int:
        return STEP * (self.count - 1 - table)

    def dropped(self, table: int, least: float, root: bool) -> int:
        """By how many bits the smallest result of a table is larger than the smallest of all, `least`."""
        if table == 0:
            return 0
        end = math.ldexp(BOUNDARY, LOW - 1 + self.shift(table - 1) - self.frac)
        return max(0, floor_log2((1 / math.sqrt(end) if root else 1 / end) / least))


def inverse(
    b: Builder, v: Wire, lo: float, hi: float, *, root: bool, single: int = 0, ring: int = 0,
    alongside: tuple[Wire, ...] = (),
) -> tuple[Wire, list[Wire]]:  # fmt: skip
    """[v^-1], or with `root` [v^-1/2], for lo <= v <= hi, one number a row; and the wires `alongside`, opened.

    2 rounds; 1 where one table of at most 2^single entries covers the range. The smallest result has DIGITS bits;
    it is on the ring that this needs, or on `ring`, if that is larger.
    Relative error of a line at most 1 / (16 FIRST^2), for the root 3 / 8 of that; v is rounded twice to
    1 / (FIRST 2^LOW), by the truncation and by the carry, and y by 1.5 2^-DIGITS.
    1. Open v, cut to LOW bits within the finest bucket, and what goes alongside: one round.
    2. Each table gives [Y] by the line of v's bucket: local. For one table that is all.
    3. Open the Y and, from v's zones, the bits a of which table answers, and for many f: does a fine one? One round.
    4. [y] = sum a Y + f sum a' Y', a' those of the fine ones.
    """
    layout = _Layout.of(lo, hi, single, root)
    # 1
    v = truncate_to(b, v, layout.frac, layout.ring)
    if v.ring < layout.ring - SPARE:
        raise RangeError(f"{b.place}: from {lo:.3g} to {hi:.3g} takes {layout.ring - SPARE} bits; there are {v.ring}")
    v, *others = b.open(v, *alongside)
    b.watch(v, 0.0, hi)  # beyond, an index has gone round
    # 2
    most, least = (1 / math.sqrt(end) if root else 1 / end for end in (lo * BELOW, hi))
    frac = DIGITS - floor_log2(least)
    ring = max(ring, frac + ceil_log2(most) + 2)  # it is extended
    drops = [layout.dropped(table, least, root) for table in range(layout.count)]
    tables = [_look_up(b, v, root, layout, table, frac - drop, ring - drop) for table, drop in enumerate(drops)]
    if layout.count == 1:
        return b.retype(tables[0], bound=most), others
    # 3
    gates = _gates(b, v, layout)
    tables = b.open(*tables)
    # 4
    terms = [_gated(b, bits, y) for bits, y in zip(gates, tables, strict=True)]
    return b.add(*terms, ring=ring, bound=most), others


def _look_up(b: Builder, v: Wire, root: bool, layout: _Layout, table: int, frac: int, ring: int) -> Wire:
    """Opened v -> [Y] of one table. Finer ones, whose values are larger, do without what the sum has beyond its ring.

    LOW more bits for the slopes are truncated: local.
    """
    shift = layout.shift(table)
    frac, ring, unit = frac + LOW, ring + LOW, layout.frac - shift  # fraction bits of a window of v
    scale = frac + (unit if not root else unit // 2)
    op = InverseLines(v.shape, v.ring, shift, LOW, layout.n, ring, root, scale, FIRST << LOW)
    (y,) = b.emit(op, [v], [(ring, frac, v.shape, 0.0)])  # outside of its zones it is no number
    return b.truncate(y, LOW, ring - LOW)


def _gates(b: Builder, v: Wire, layout: _Layout) -> list[tuple[Wire, ...]]:
    """Opened v -> for each table, the opened bits that are all 1 where it answers. One round."""
    boundaries = layout.count - 1
    split = boundaries if boundaries <= ALONE else -(-boundaries // 2)
    finer, *gates = ((bit,) for bit in _zones(b, v, layout, 0, split))
    if split == boundaries:
        return [*gates[::-1], finer]
    fine = [(*finer, bit) for bit in _zones(b, v, layout, split, boundaries)]
    return [*gates[::-1], *fine[::-1]]


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
    return b.emit(Mux2(y.shape, y.ring), [*bits, y], [(y.ring, y.frac, y.shape, y.bound)])[0]

"""Softmax: an approximate maximum from a histogram, a windowed exponential, one reciprocal a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.functions.inverse import inverse_power
from ditto.ops import Affine, Exponential, Lookup, OneHot, SuffixSum

WINDOW = 10.0  # padding scores at least this much below the lowest real score
UNIT = 3  # log2 of the exponential's table step


@dataclass(frozen=True)
class ScoreType:
    """How scores in [-bound, bound] lie on a circle of 2^16 steps: range T = 2^(16 - frac), buckets of `width`."""

    bound: float
    log_range: int
    log_width: int

    @classmethod
    def of(cls, bound: float) -> ScoreType:
        """Room for masked scores (three bounds down), five buckets of slack and the unit kept for the borrow.

        The bound grows to fill the circle it needs: that margin is free.
        """
        for log_range in range(5, 11):
            log_width = 1 if log_range >= 7 else 0
            room = (2.0**log_range - WINDOW - 5 * 2.0**log_width - 2.0**UNIT) / 4
            if bound <= room:
                return cls(room, log_range, log_width)
        raise ValueError(f"attention scores up to {bound:.4g}")

    @property
    def frac(self) -> int:
        return 16 - self.log_range

    @property
    def width(self) -> float:
        return 2.0**self.log_width

    @property
    def mask(self) -> float:
        """What the client adds to the scores of padding."""
        return -(2 * self.bound + WINDOW + 2 * self.width)

    @property
    def offset(self) -> float:
        """Moves the lowest masked score one bucket above zero, on a whole bucket."""
        return math.ceil((3 * self.bound + WINDOW + 3 * self.width) / self.width) * self.width


def softmax_numerator(
    b: Builder, scores: Wire, circle: ScoreType, causal: bool = False, digits: int = 16
) -> tuple[Wire, Wire, tuple[float, float]]:
    """[scores] (16, f) in `circle`, shape [..., N] -> [E] (40, 16), [sum E], its range. 3 rounds.

    E is precise to 2^-`digits`: 16, 12 or 10, for 8, 7 or 6 bytes an entry from the dealer.
    `causal`: of [..., N, N] only the entries with column <= row count; the others are never computed, E is 0 there.

    E = exp(scores - M - width) where M is the row's maximum up to one bucket: max - width < M <= max + width.
    1. Bucket ids by truncate-reduce (stochastic: the id or the id plus one); open; one-hot; sum over the row.
    2. Suffix sums count the scores at or above a bucket; open; "is it used?" by table; their sum is M's id,
       which scales onto the scores' circle without a conversion (buckets * width = T). Only buckets that a real
       score within its bound can have are asked: every row has one, so those below are used, those above are not.
    3. Open scores - M - width, which is negative; windowed exponential: 0 for what lies more than 16 below.
    """
    buckets = circle.log_range - circle.log_width
    count_bits = max(8, (scores.shape[-1]).bit_length())
    lifted = b.affine(scores, 1, circle.offset, scores.frac, bound=circle.bound)
    index = b.truncate(lifted, scores.frac + circle.log_width, buckets, bound=0.0)
    (opened,) = b.open(b.triangle(index) if causal else index)
    shape = (*opened.shape, 1 << buckets)
    (hot,) = b.emit(OneHot(opened.shape, buckets, count_bits), [opened], [(count_bits, 0, shape, 0.0)])
    if causal:
        hot = b.untriangle(hot, scores.shape[-1], rest=1)
    counts = b.view(b.sum(hot, -2), shape=(*scores.shape[:-1], 1 << buckets))
    (suffix,) = b.emit(SuffixSum(count_bits), [counts], [(count_bits, 0, counts.shape, 0.0)])
    below = math.floor((circle.offset - circle.bound) / circle.width)
    above = math.floor((circle.offset + circle.bound) / circle.width) + 1
    (suffix,) = b.open(b.view(suffix, slices=((len(counts.shape) - 1, below + 1, min(above + 1, 1 << buckets)),)))
    id_bits = 8 if buckets <= 8 else 16
    used = Lookup(suffix.shape, count_bits, id_bits, tuple(int(i > 0) for i in range(1 << count_bits)))
    (marks,) = b.emit(used, [suffix], [(id_bits, 0, suffix.shape, 0.0)])
    top = b.sum(marks, -1)
    # ids scaled by width 2^f: a multiplication by 2^(16 - buckets) takes Z_2^buckets onto Z_2^16
    width = -int(circle.width * 2**scores.frac) * (below + 1)
    (wide,) = b.emit(Affine(16, -(1 << (16 - buckets)), width), [top], [(16, scores.frac, top.shape, 0.0)])
    negative = b.add(lifted, wide, bound=circle.bound)
    (d,) = b.open(b.triangle(negative) if causal else negative)
    ring, fu, fv = {16: (64, 10, 27), 12: (56, 9, 23), 10: (48, 7, 19)}[digits]
    op = Exponential(d.shape, 16, scores.frac, scores.frac + UNIT, -2, -1, ring, fu, fv)
    (e,) = b.emit(op, [d], [(ring, fu + fv, d.shape, 1.0)])
    e = b.truncate(e, e.frac - 16, min(40, ring - e.frac + 16), bound=1.1)
    if causal:
        e = b.untriangle(e, scores.shape[-1])
    return e, b.sum(e, -1), (0.9 * math.exp(-2 * circle.width), 1.1 * scores.shape[-1])


def reciprocal_of_sum(
    b: Builder, total: Wire, limits: tuple[float, float], alongside: tuple[Wire, ...] = (), few: bool = False,
    index_bits: int = 9,
) -> tuple[Wire, list[Wire]]:
    """[1 / sum E] on (32, f_y), one number a row, by `inverse_power` with a second Newton step; `alongside` opened.

    `few` rows: larger tables, of 2^index_bits, instead of the second step, three rounds less.
    """
    lo, hi = limits
    p = min(12, (32 - math.ceil(math.log2(hi / lo))) // 2)
    v = b.truncate(total, max(0, total.frac - (p - math.floor(math.log2(lo)))), 32)
    frac = 32 - v.frac
    frac = min(frac, p + math.ceil(math.log2(hi)))
    if few:
        frac = min(frac, 23 - math.ceil(math.log2(2 / lo)))  # its square, too, fits 48 bits
        return inverse_power(
            b, v, lo, hi, root=False, frac=frac, index_bits=index_bits, octaves=5, fan_in=3, ring=48,
            alongside=alongside,
        )  # fmt: skip
    return inverse_power(b, v, lo, hi, root=False, frac=frac, second=True, alongside=alongside)

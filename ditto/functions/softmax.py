"""Softmax: an approximate maximum from a histogram, a windowed exponential, one reciprocal a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import FixedPoint, truncate_to
from ditto.functions.inverse import Tables, inverse_power
from ditto.ops import Affine, Exponential, Lookup, OneHot, SuffixSum
from ditto.ring.exact import ceil_log2, floor_log2

SCORE_RING = 16  # scores lie on a circle of 2^16 steps
LOG_RANGES = range(5, 11)  # of the score types, narrowest first
PADDING_GAP = 10.0  # padding scores at least this much below the lowest real score
COUNT_RING = 8  # of a histogram, or what the length of a row needs
ID_RINGS = (8, 16)  # of the maximum's bucket: the smallest that holds an id
LOG_UNIT = 3  # log2 of the exponential's table step
WINDOW = (-2, -1)  # its table steps from the lowest to the highest: 0 for what lies more than 16 below
LEAST = (0.1353352832366127, 0.01831563888873418)  # exp(-2 width) by log_width: what a row's largest score gives
ROUNDED = (0.9, 1.1)  # E and its sum lie between these multiples of what they would be without rounding
NUMERATOR = FixedPoint(40, 16)
SUM_RING = 32  # of sum E for its reciprocal, and of that
SUM_DIGITS = 12  # of the smallest sum, and of the smallest reciprocal, where the ring has them


@dataclass(frozen=True)
class ScoreType:
    """How scores in [-bound, bound] lie on a circle of 2^16 steps: range T = 2^log_range, buckets of 2^log_width."""

    bound: float
    log_range: int
    log_width: int

    @classmethod
    def of(cls, bound: float) -> ScoreType:
        """The narrowest circle for |scores| <= bound; the bound grows to fill it: that margin is free.

        Room for masked scores (three bounds down), five buckets of slack and the unit kept for the borrow. Raises
        RangeError where no circle is wide enough.
        """
        for log_range in LOG_RANGES:
            log_width = 1 if log_range >= 7 else 0
            room = ((1 << log_range) - PADDING_GAP - (5 << log_width) - (1 << LOG_UNIT)) / 4
            if bound <= room:
                return cls(room, log_range, log_width)
        raise RangeError(f"attention scores up to {bound:.4g} do not fit: the widest score type holds {room:.4g}")

    @property
    def frac(self) -> int:
        return SCORE_RING - self.log_range

    @property
    def width(self) -> float:
        return float(1 << self.log_width)

    @property
    def id_bits(self) -> int:
        """Bits of a bucket's id: 2^id_bits buckets go once round the circle."""
        return self.log_range - self.log_width

    @property
    def mask(self) -> float:
        """What the client adds to the scores of padding."""
        return -(2 * self.bound + PADDING_GAP + 2 * self.width)

    @property
    def offset(self) -> float:
        """Moves the lowest masked score one bucket above zero, on a whole bucket."""
        return math.ceil((3 * self.bound + PADDING_GAP + 3 * self.width) / self.width) * self.width


@dataclass(frozen=True)
class ExponentialType:
    """How an exponential is dealt: the ring of each dealt entry, the fraction bits of the public and the dealt factor.

    The ring sets the dealer's bytes; the fraction bits of both factors together are those of their product.
    """

    ring: int
    public_frac: int
    dealt_frac: int


EXPONENTIALS = {  # by the binary digits that are right
    16: ExponentialType(64, 10, 27),
    12: ExponentialType(56, 9, 23),
    10: ExponentialType(48, 7, 19),
}


def softmax_numerator(
    b: Builder, scores: Wire, circle: ScoreType, causal: bool = False, digits: int = 16
) -> tuple[Wire, Wire, tuple[float, float]]:
    """[scores] (16, f) in `circle`, shape [..., N] -> [E] (40, 16), [sum E], its range. 3 rounds.

    E = exp(scores - M - width) where M is the row's maximum up to one bucket: max - width < M <= max + width.
    `digits`: E is precise to 2^-16, 2^-12 or 2^-10, for 8, 7 or 6 bytes an entry from the dealer (10: on 38 bits).
    `causal`: of [..., N, N] only the entries with column <= row count; the others are never computed, E is 0 there.

    1. Bucket ids by truncate-reduce (stochastic: the id or the id plus one); open; one-hot; sum over the row.
    2. Suffix sums count the scores at or above a bucket; open; "is it used?" by table; their sum is M's id,
       which scales onto the scores' circle without a conversion (buckets * width = T). Only buckets that a real
       score within its bound can have are asked: every row has one, so those below are used, those above are not.
    3. Open scores - M - width, which is negative; windowed exponential: 0 for what lies more than 16 below.
    """
    n = scores.shape[-1]
    lifted = b.affine(scores, 1, circle.offset, scores.frac, bound=circle.bound)
    # 1
    counts = _histogram(b, lifted, circle, causal)
    # 2
    shift = _minus_maximum(b, counts, circle)
    # 3
    negative = b.add(lifted, shift, bound=0.0)  # masked scores fill the circle: no bound says where a value belongs
    (opened,) = b.open(b.triangle(negative) if causal else negative)
    e = _exponential(b, opened, EXPONENTIALS[digits])
    if causal:
        e = b.untriangle(e, n)
    least, most = ROUNDED
    return e, b.sum(e, -1), (least * LEAST[circle.log_width], most * n)


def _histogram(b: Builder, lifted: Wire, circle: ScoreType, causal: bool) -> Wire:
    """[scores - the lowest] -> [how many scores of its row each bucket holds], [..., 2^id_bits]. One round."""
    n, buckets = lifted.shape[-1], 1 << circle.id_bits
    ids = b.truncate(lifted, lifted.frac + circle.log_width, circle.id_bits, bound=0.0)
    (opened,) = b.open(b.triangle(ids) if causal else ids)
    ring = max(COUNT_RING, n.bit_length())
    one_hot = OneHot(opened.shape, circle.id_bits, ring)
    (hot,) = b.emit(one_hot, [opened], [(ring, 0, (*opened.shape, buckets), 0.0)])
    if causal:
        hot = b.untriangle(hot, n, rest=1)
    return b.view(b.sum(hot, -2), shape=(*lifted.shape[:-1], buckets))


def _minus_maximum(b: Builder, counts: Wire, circle: ScoreType) -> Wire:
    """A row's histogram -> [-(M + width)] on the scores' circle, [..., 1]. One round."""
    (suffix,) = b.emit(SuffixSum(counts.ring), [counts], [(counts.ring, 0, counts.shape, 0.0)])
    lowest = math.floor((circle.offset - circle.bound) / circle.width)  # ids of real scores
    highest = math.floor((circle.offset + circle.bound) / circle.width) + 1
    asked = (len(counts.shape) - 1, lowest + 1, min(highest + 1, 1 << circle.id_bits))
    (suffix,) = b.open(b.view(suffix, slices=(asked,)))
    ring = next(bits for bits in ID_RINGS if bits >= circle.id_bits)
    is_used = Lookup(suffix.shape, suffix.ring, ring, tuple(int(i > 0) for i in range(1 << suffix.ring)))
    (used,) = b.emit(is_used, [suffix], [(ring, 0, suffix.shape, 0.0)])
    above_lowest = b.sum(used, -1)
    # M = (lowest + above_lowest) width; ids times 2^(16 - id_bits) go from Z_2^id_bits onto Z_2^16
    bucket = 1 << (SCORE_RING - circle.id_bits)
    onto_circle = Affine(SCORE_RING, -bucket, -bucket * (lowest + 1))
    return b.emit(onto_circle, [above_lowest], [(SCORE_RING, circle.frac, above_lowest.shape, 0.0)])[0]


def _exponential(b: Builder, x: Wire, dealt: ExponentialType) -> Wire:
    """Opened x < 0 -> [exp x] with 16 fraction bits. No round."""
    step = x.frac + LOG_UNIT
    op = Exponential(x.shape, SCORE_RING, x.frac, step, *WINDOW, dealt.ring, dealt.public_frac, dealt.dealt_frac)
    (e,) = b.emit(op, [x], [(dealt.ring, dealt.public_frac + dealt.dealt_frac, x.shape, ROUNDED[1])])
    return truncate_to(b, e, NUMERATOR.frac, NUMERATOR.ring)


def reciprocal_of_sum(
    b: Builder,
    total: Wire,
    limits: tuple[float, float],
    alongside: tuple[Wire, ...] = (),
    fewer_rounds: bool = False,
    index_bits: int = 9,
) -> tuple[Wire, list[Wire]]:
    """[sum E] within `limits` -> [1 / sum E] on (32, f), one number a row; and the wires `alongside`, opened.

    By `inverse_power` with a second Newton step on tables of 2^7 entries. `fewer_rounds` pays for rounds with dealer
    bytes, as is right for few rows: tables of 2^index_bits entries in the place of the second step, three rounds less.
    """
    lo, hi = limits
    # as many bits for the smallest sum as for the smallest reciprocal: both together fit the ring
    digits = min(SUM_DIGITS, (SUM_RING - ceil_log2(hi / lo)) // 2)
    v = b.truncate(total, max(0, total.frac - (digits - floor_log2(lo))), SUM_RING)
    frac = min(SUM_RING - v.frac, digits + ceil_log2(hi))
    if not fewer_rounds:
        return inverse_power(b, v, lo, hi, root=False, frac=frac, second_step=True, alongside=alongside)
    tables = Tables(index_bits, octaves=5, fan_in=3, ring=48)
    frac = min(frac, tables.ring // 2 - 1 - ceil_log2(2 / lo))  # the largest square fits the ring
    return inverse_power(b, v, lo, hi, root=False, frac=frac, tables=tables, alongside=alongside)

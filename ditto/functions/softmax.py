"""Softmax: an approximate maximum from a histogram, a windowed exponential, one reciprocal a row.

Scores are less that of the first key, which softmax does not see: each row has a score of 0, so its maximum is at
least that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import FixedPoint, b2a, truncate_to
from ditto.functions.inverse import inverse
from ditto.ops import Affine, Exponential, IsZero, Lookup, OneHot, SuffixSum

SCORE_RING = 16  # scores lie on a circle of 2^16 steps
LOG_RANGES = range(6, 11)  # of the score types, narrowest first
LOG_WIDTH = 1  # of a bucket
LOG_UNIT = 4  # of the exponential's table step
GAP = 16  # masked scores lie so far below the lowest possible maximum
COUNT_RING = 8  # of a histogram, or what the length of a row needs
ID_RINGS = (8, 16)  # of the maximum's bucket: the smallest that holds an id
WINDOW = (-1, -1)  # table steps of the exponential from the lowest to the highest: 0 for what lies below one step
LEAST = 0.01831563888873418  # exp(-2 width): what a row's largest score gives
ROUNDED = (0.9, 1.1)  # E and its sum lie between these multiples of what they would be without rounding
NUMERATOR = FixedPoint(40, 16)
SAVED = 1 << 20  # bytes of a layer from the dealer that are worth a round


@dataclass(frozen=True)
class ExponentialType:
    """How an exponential is dealt: the ring of each dealt entry, the fraction bits of the public and the dealt factor.

    The ring sets the dealer's bytes; the fraction bits of both factors together are those of their product.
    """

    ring: int
    public_frac: int
    dealt_frac: int

    def holding(self, bits: int) -> ExponentialType:
        """The same with at least so many bits before the point, as far as the public factor has fraction bits to give.

        They are worth little: the dealt factor, which their rounding is multiplied with, is at most e^-unit."""
        return replace(self, public_frac=max(0, min(self.public_frac, self.ring - self.dealt_frac - bits)))


PRECISE = ExponentialType(64, 6, 36)
NARROW = ExponentialType(56, 4, 30)


@dataclass(frozen=True)
class ScoreType:
    """How scores lie on a circle of 2^16 steps: range T = 2^log_range, buckets of 2^LOG_WIDTH, and units of 2^log_unit
    for the exponential.

    `asked`: buckets above the one of 0 that a row's maximum can be in; `counted`: of those, and of some above, the
    scores are counted. `mask`: what is added to masked scores.
    """

    log_range: int
    asked: int
    counted: int
    mask: int
    log_unit: int = LOG_UNIT

    @classmethod
    def of(cls, above: float, below: float, spread: float, lowered: bool = False) -> ScoreType:
        """The narrowest circle for rows that have a score of 0, scores in [-below, above], and at most `spread` from
        the largest of a row to its least. Masked scores are 0 before the mask, or (`lowered`) like the others.

        With w the width, u the unit, M the maximum's bucket, max - w < M <= max + w, 0 <= M <= above:
        1. Masked scores lie at least GAP below 0, the mask is GAP, or where they are not 0 before GAP + above. They
           and the others are at least -l.
        2. None may come round to the buckets counted for the maximum: of ids up to floor(above / w) + 1, the lowest
           is at least floor(-l / w) + T / w. One bucket between, if there is any, is counted, too.
        3. The exponential's argument, score - M - w, lies above -(T - u): spread + 2 w + u <= T, for masked scores
           l + above + 2 w + u <= T.
        Raises RangeError where no circle is wide enough.
        """
        width, unit = 1 << LOG_WIDTH, 1 << LOG_UNIT
        mask = GAP + (math.ceil(above) if lowered else 0)  # 1
        masked = mask + (below if lowered else 0)
        lowest = max(masked, below)
        asked = math.floor(above / width)
        need = max(spread, masked + above) + 2 * width + unit  # 3
        for log_range in LOG_RANGES:
            spare = math.floor(((1 << log_range) - lowest) / width) - asked - 2  # 2
            if spare >= 0 and need <= 1 << log_range:
                return cls(log_range, asked, asked + 1 + min(spare, 1), -mask)
        raise RangeError(
            f"attention scores up to {above:.4g} above and {below:.4g} below that of the first token, {spread:.4g} in "
            f"a row, do not fit: the widest score type spans {1 << LOG_RANGES[-1]}"
        )

    @property
    def frac(self) -> int:
        return SCORE_RING - self.log_range

    @property
    def width(self) -> float:
        return float(1 << LOG_WIDTH)

    @property
    def id_bits(self) -> int:
        """Bits of a bucket's id: 2^id_bits buckets go once round the circle."""
        return self.log_range - LOG_WIDTH


def softmax_numerator(
    b: Builder,
    scores: Wire,
    circle: ScoreType,
    causal: bool = False,
    dealt: ExponentialType = PRECISE,
    by_bits: bool | None = None,
) -> tuple[Wire, Wire, tuple[float, float]]:
    """[scores] (16, f) in `circle`, shape [..., N] -> [E] (40, 16), [sum E], its range. 3 rounds, or 4.

    E = exp(scores - M - width) where M is the row's maximum up to one bucket: max - width < M <= max + width.
    `dealt`: the exponential's type, NARROW or PRECISE (E on 38 bits).
    `by_bits`: "is it used?" by IsZero, an eighth of the bytes for one more round; None: where that saves SAVED bytes.
    `causal`: of [..., N, N] only the entries with column <= row count; the others are never computed, E is 0 there.

    1. Bucket ids by truncate-reduce (stochastic: the id or the id plus one); open; one-hot; sum over the row.
    2. Suffix sums count the scores at or above a bucket, up to the highest that no score below 0 comes round to; open;
       "is it used?" by table or bits. Every row has a score of 0, and none above its bound, so only the buckets
       between are asked; how many are used is M's id, which scales onto the scores' circle without a conversion
       (buckets * width = T).
    3. Open scores - M - width, which is negative; windowed exponential: 0 for what lies more than 32 below.
    """
    n = scores.shape[-1]
    negative = b.affine(
        scores, 1, -circle.width, scores.frac, bound=0.0
    )  # on a circle no bound says what belongs there
    if circle.asked:
        counts = _histogram(b, scores, circle, causal)  # 1
        negative = b.add(negative, _minus_maximum(b, counts, circle, by_bits), bound=0.0)  # 2
    # 3
    (opened,) = b.open(b.triangle(negative) if causal else negative)
    e = _exponential(b, opened, circle, dealt)
    if causal:
        e = b.untriangle(e, n)
    least, most = ROUNDED
    return e, b.sum(e, -1), (least * LEAST, most * n)


def _histogram(b: Builder, scores: Wire, circle: ScoreType, causal: bool) -> Wire:
    """[scores] -> [how many of its row are in bucket 1, 2, ... `counted`], [..., counted]. One round."""
    n, buckets = scores.shape[-1], 1 << circle.id_bits
    ids = b.truncate(scores, scores.frac + LOG_WIDTH, circle.id_bits, bound=0.0)
    (opened,) = b.open(b.triangle(ids) if causal else ids)
    ring = max(COUNT_RING, n.bit_length())
    one_hot = OneHot(opened.shape, circle.id_bits, ring)
    (hot,) = b.emit(one_hot, [opened], [(ring, 0, (*opened.shape, buckets), 0.0)])
    hot = b.view(hot, slices=((len(hot.shape) - 1, 1, circle.counted + 1),))
    if causal:
        hot = b.untriangle(hot, n, rest=1)
    return b.view(b.sum(hot, -2), shape=(*scores.shape[:-1], circle.counted))


def _minus_maximum(b: Builder, counts: Wire, circle: ScoreType, by_bits: bool | None) -> Wire:
    """A row's histogram -> [-M] on the scores' circle, [..., 1]. One round, by bits two."""
    (suffix,) = b.emit(SuffixSum(counts.ring), [counts], [(counts.ring, 0, counts.shape, 0.0)])
    (suffix,) = b.open(b.view(suffix, slices=((len(counts.shape) - 1, 0, circle.asked),)))
    ring = next(bits for bits in ID_RINGS if bits >= circle.id_bits)
    table = Lookup(suffix.shape, suffix.ring, ring, tuple(int(i > 0) for i in range(1 << suffix.ring)))
    bits = IsZero(suffix.shape, suffix.ring)
    if by_bits is None:
        by_bits = table.cost().dealer - bits.cost().dealer > SAVED
    # M = used width; ids times 2^(16 - id_bits) go from Z_2^id_bits onto Z_2^16
    bucket = 1 << (SCORE_RING - circle.id_bits)
    if by_bits:
        (bit,) = b.emit(bits, [suffix], [(1, 0, suffix.shape, 1.0)])
        unused = b.sum(b2a(b, bit, ring), -1, bound=0.0)
        count, onto_circle = unused, Affine(SCORE_RING, bucket, -bucket * circle.asked)
    else:
        (used,) = b.emit(table, [suffix], [(ring, 0, suffix.shape, 0.0)])
        count, onto_circle = b.sum(used, -1), Affine(SCORE_RING, -bucket, 0)
    return b.emit(onto_circle, [count], [(SCORE_RING, circle.frac, count.shape, 0.0)])[0]


def _exponential(b: Builder, x: Wire, circle: ScoreType, dealt: ExponentialType) -> Wire:
    """Opened x < 0 -> [exp x] with 16 fraction bits. No round."""
    step = x.frac + circle.log_unit
    op = Exponential(x.shape, SCORE_RING, x.frac, step, *WINDOW, dealt.ring, dealt.public_frac, dealt.dealt_frac)
    (e,) = b.emit(op, [x], [(dealt.ring, dealt.public_frac + dealt.dealt_frac, x.shape, ROUNDED[1])])
    return truncate_to(b, e, NUMERATOR.frac, NUMERATOR.ring)


def reciprocal_of_sum(
    b: Builder, total: Wire, limits: tuple[float, float], alongside: tuple[Wire, ...] = ()
) -> tuple[Wire, list[Wire]]:
    """[sum E] within `limits` -> [1 / sum E], one number a row; and the wires `alongside`, opened. 2 rounds."""
    return inverse(b, total, *limits, root=False, alongside=alongside)

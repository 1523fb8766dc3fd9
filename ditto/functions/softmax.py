"""Softmax: an approximate maximum from a histogram, or a bound in its place; a windowed exponential; 1 / sum a row.

Scores are less that of the first key, which softmax does not see: each row has a score of 0, so its maximum is at
least that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import FixedPoint, truncate_to
from ditto.functions.inverse import Part, inverse, reciprocal_in_parts
from ditto.ops import Exponential, LessRow, Lookup, NonZero, OneHot, Sketch, SuffixSum

SCORE_FRAC = 8  # fraction bits of scores, as many as queries and keys have: rounding these moves a score by more
SCORE_RING = 16  # bits of a score at most, with fewer of those
LOG_RANGES = range(6, 11)  # of the score types, narrowest first
LOG_WIDTH = 1  # of a bucket
LOG_UNIT = 4  # of the exponential's table step
LOG_UNITS = (4, 3, 2)  # over many octaves, fewest bytes first: of a step's e^unit each bit is one of the dealt factor's
GAP = 16  # masked scores lie so far below the lowest possible maximum
NEAR = 1  # how far noise takes scores from what they would be alike with; measured: 0.2
WORD = 14  # digits of 3 bits: a used bucket looks unused with a chance of 2^-42
DIGIT_COUNT = 4  # bits that hold WORD
WINDOW = (-1, -1)  # table steps of the exponential from the lowest to the highest: 0 for what lies below one step
DEEP = 12.0  # without a maximum: how far below the least of a row's largest scores none is 0
LEAST = 0.01831563888873418  # exp(-2 width): what a row's largest score gives
LN2, LOG2_E = 0.6931471805599453, 1.4426950408889634
MARGIN = 3  # a bound of scores less a third of it is what calibration saw
DEALT_OCTAVES = 8  # of E that the exponential's dealt factor has fraction bits for
DIGITS = 10  # of a row's least exponential without a maximum, at most
PUBLIC = 4  # fraction bits of the exponential's public factor, at least, without a maximum,
SCARCE = (3, 1)  # and over many octaves: so many, and so many fewer of the dealt one's
AMPLE = 2  # more of those, where there is room
ROUNDED = (0.9, 1.1)  # E and its sum lie between these multiples of what they would be without rounding
NUMERATOR = FixedPoint(40, 16)
CARRIER = 64  # bits that a ring has at most
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

    def resolving(self, octaves: int) -> ExponentialType:
        """The same with fraction bits for a row whose largest E is 2^-octaves."""
        return replace(self, dealt_frac=self.dealt_frac + max(0, octaves - DEALT_OCTAVES))

    def filling(self, octaves: int, log_unit: int, whole: int) -> ExponentialType | None:
        """The same on the smallest ring with AMPLE fraction bits for such a row, for steps of 2^log_unit and `whole`
        bits before the point; SCARCE where CARRIER bits have no room for more, and for what is not PRECISE. None where
        they have no room for those."""
        of_step = [round((1 << log) * LOG2_E) for log in (log_unit, LOG_UNIT)]
        dealt = PRECISE.dealt_frac - DEALT_OCTAVES + of_step[0] - of_step[1] + octaves
        room = CARRIER - whole
        public, fewer = SCARCE
        if room < public + dealt - fewer:
            return None
        if self != PRECISE:
            dealt -= fewer
        else:
            public = min(PUBLIC, max(public, room - dealt))
            dealt = min(dealt + AMPLE, room - public)
        return ExponentialType(whole + public + dealt, public, dealt)


PRECISE = ExponentialType(64, 6, 36)
NARROW = ExponentialType(56, 4, 30)


@dataclass(frozen=True)
class ScoreType:
    """How scores lie on a circle of 2^ring steps: range T = 2^log_range, buckets of 2^LOG_WIDTH, and units of
    2^log_unit for the exponential.

    `asked`: buckets above the one of 0 that a row's maximum can be in; `counted`: of those, and of some above, the
    scores are counted. `mask`: what is added to masked scores. `octaves`: where none is asked, log2 of exp of a number
    above all scores, which stands for the maximum of every row. `parts`: in how many 1 / sum is had.
    """

    log_range: int
    asked: int
    counted: int
    mask: int
    log_unit: int = LOG_UNIT
    octaves: int = 3
    parts: int = 1

    @classmethod
    def of(cls, above: float, below: float, spread: float, lowered: bool = False) -> ScoreType:
        """The narrowest circle for rows that have a score of 0, scores in [-below, above], and at most `spread` from
        the largest of a row to its least. Masked scores are 0 before the mask, or (`lowered`) like the others.

        With w the width, u the unit, M the maximum's bucket, max - w < M <= max + w, 0 <= M <= above:
        1. Masked scores lie GAP below 0, the mask is GAP; up to NEAR, since a key's like the first differs by noise.
           Where they are not 0 before, the mask is GAP + above. They and the others are at least -l.
        2. None may come round to the buckets counted for the maximum: of ids up to floor(above / w) + 1, the lowest
           is at least floor(-l / w) + T / w. One bucket between, if there is any, is counted, too.
        3. The exponential's argument, score - M - w, lies above -(T - u): spread + 2 w + u <= T, for masked scores
           l + above + 2 w + u <= T.
        Raises RangeError where no circle is wide enough.
        """
        width, unit = 1 << LOG_WIDTH, 1 << LOG_UNIT
        mask, masked = cls._masked(above, below, lowered)  # 1
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

    @classmethod
    def without_maximum(
        cls, above: float, below: float, lowered: bool = False, log_unit: int = LOG_UNIT, parts: int = 1
    ) -> ScoreType:
        """The narrowest circle for the same scores where a bound, `reference`, stands for the maximum of every row.

        As `of`, with the reference in the place of M + w: l + reference + u <= T. Raises RangeError likewise.
        """
        octaves = math.floor(above * LOG2_E) + 1
        mask, masked = cls._masked(above, below, lowered)
        need = max(masked, below) + octaves * LN2 + (1 << log_unit)
        for log_range in LOG_RANGES:
            circle = cls(log_range, 0, 0, -mask, log_unit, octaves, parts)
            # of the table's steps, one above the window is kept for a carry
            if need <= 1 << log_range and (2 - circle.window[0]) << log_unit <= 1 << log_range:
                return circle
        raise RangeError(f"attention scores that span {need:.4g} do not fit: the widest type spans {1 << log_range}")

    @staticmethod
    def _masked(above: float, below: float, lowered: bool) -> tuple[int, float]:
        """By how much masked scores are lowered, and how far below 0 they lie then at most."""
        mask = GAP + (math.ceil(above) if lowered else 0)
        return mask, mask + (below if lowered else NEAR)

    @property
    def window(self) -> tuple[int, int]:
        """Table steps of the exponential from the lowest to the highest."""
        if self.asked:
            return WINDOW
        return min(-math.ceil((self.reference + DEEP) / (1 << self.log_unit)), -2), -1

    @property
    def reference(self) -> float:
        """What is taken off the scores beside M."""
        return self.width if self.asked else self.octaves * LN2

    def sums(self, n: int) -> tuple[float, float]:
        """The range of a row's sum of n exponentials.

        Where a bound stands for the maximum, at most that of one score at the bound and the others as high as
        calibration saw any. What goes beyond is marked by the range guard, as any sum."""
        least, most = ROUNDED
        if self.asked:
            return least * LEAST, most * n
        return math.ldexp(least, -self.octaves), most * (1 + math.ldexp(n - 1, -(self.octaves // MARGIN)))

    @property
    def ring(self) -> int:
        return min(SCORE_RING, self.log_range + SCORE_FRAC)

    @property
    def frac(self) -> int:
        return self.ring - self.log_range

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
    """[scores] on `circle`, shape [..., N] -> [E] (40, 16), [sum E], its range. 4 rounds, 3, or 1.

    E = exp(scores - M - width) where M is the row's maximum up to one bucket: max - width < M <= max + width. Where the
    circle asks for none, E = exp(scores - reference), with as many more fraction bits as `reference` takes: steps 1
    and 4 alone.
    `dealt`: the exponential's type, NARROW or PRECISE (E on 38 bits).
    `by_bits`: which buckets are used from parities, a fourth of the bytes for one more round; None: where that saves
    SAVED bytes. A row's M is one bucket too low then with a chance of at most 2^-42 for each bucket asked.
    `causal`: of [..., N, N] only the entries with column <= row count; the others are never computed, E is 0 there.

    1. Open the scores. The top bits of m and of r give bucket ids: the id, or the id plus one where the others carry.
    2. "Is any score of the row at or above this bucket, up to the highest that none below 0 comes round to?" in
       shares, by counts (one round) or by parities (two). Every row has a score of 0, that of the first key, and none
       above its bound, so only the buckets between are asked; how many are used is M's id.
    3. Open M, on the bits of an id, which scale onto the scores' circle without a conversion (buckets * width = T).
    4. scores - M - width, which is negative, is a difference of what is open; windowed exponential: 0 for what lies
       more than 32 below.
    """
    n = scores.shape[-1]
    asked = circle.asked if n > 1 else 0  # a first key has no other's to exceed
    if not asked:
        # on a circle no bound says what belongs there
        scores = b.affine(scores, 1, -circle.reference, scores.frac, bound=0.0)
    (opened,) = b.open(b.triangle(scores) if causal else scores)  # 1
    if asked:
        find = _by_parities if _saves(opened, n, circle, causal, by_bits) else _by_counts
        used = b.sum(find(b, opened, n, circle, causal), -1)  # 2
        (top,) = b.open(b.affine(used, 1, 1.0, 0, bound=0.0))  # 3
        less = LessRow(circle.ring, circle.ring - circle.id_bits, n if causal else 0)
        (opened,) = b.emit(less, [opened, top], [(circle.ring, opened.frac, opened.shape, 0.0)])  # 4
    e = _exponential(b, opened, circle, dealt)
    if causal:
        e = b.untriangle(e, n)
    sums = circle.sums(n)
    return e, b.sum(e, -1, bound=sums[1]), sums


def _saves(opened: Wire, n: int, circle: ScoreType, causal: bool, by_bits: bool | None) -> bool:
    """By parities? If nothing is said, where that saves SAVED bytes."""
    if by_bits is not None:
        return by_bits
    dealt = []
    for find in (_by_counts, _by_parities):
        trial = Builder()
        trial.layer("trial")
        find(trial, opened, n, circle, causal)
        dealt.append(trial.program.cost().dealer)
    return dealt[0] - dealt[1] > SAVED


def _by_counts(b: Builder, opened: Wire, n: int, circle: ScoreType, causal: bool) -> Wire:
    """Opened scores -> [is any of its row in bucket t or above?] on the bits of an id, [..., asked]. One round.

    1. One-hot vectors of the ids, summed over the row but for its first score, whose bucket nobody asks for.
    2. Suffix sums; open; a table. A row of n keys has at most n - 1 to count, which sets the ring.
    """
    if not causal:
        opened = b.view(opened, slices=((len(opened.shape) - 1, 1, n),))
    # 1
    ring, rows = (n - 1).bit_length(), len(opened.shape) - 1
    one_hot = OneHot(opened.shape, circle.id_bits, ring, circle.ring - circle.id_bits)
    (hot,) = b.emit(one_hot, [opened], [(ring, 0, (*opened.shape, 1 << circle.id_bits), 0.0)])
    hot = b.view(hot, slices=((rows + 1, 1, circle.counted + 1),))
    if causal:
        hot = b.untriangle(hot, n, rest=1)
        rows += 1
        hot = b.view(hot, slices=((rows, 1, n),))
    counts = b.view(b.sum(hot, rows), shape=(*hot.shape[:rows], circle.counted))
    # 2
    (suffix,) = b.emit(SuffixSum(ring), [counts], [(ring, 0, counts.shape, 0.0)])
    (suffix,) = b.open(b.view(suffix, slices=((rows, 0, circle.asked),)))
    return _positive(b, suffix, circle)


def _by_parities(b: Builder, opened: Wire, n: int, circle: ScoreType, causal: bool) -> Wire:
    """The same but for a chance of 2^-42 of each bucket in use. Two rounds.

    1. A word for every bucket, 0 where it is not used, else a random one (`Sketch`), of WORD digits of 3 bits.
    2. How many of its digits are not 0; open; a table.
    """
    # 1
    place = len(b.program.steps)
    op = Sketch(opened.shape, circle.ring, circle.id_bits, circle.asked, circle.counted, WORD, place, causal)
    (words,) = b.emit(op, [b.key(), opened], [(3, 0, op.out, 0.0)])
    # 2
    count = NonZero(op.out, DIGIT_COUNT)
    (count_of_digits,) = b.emit(count, [words], [(DIGIT_COUNT, 0, op.out[:-1], 0.0)])
    return _positive(b, b.open(count_of_digits)[0], circle)


def _positive(b: Builder, counts: Wire, circle: ScoreType) -> Wire:
    """Opened counts -> [are they positive?] on the bits of an id. No round."""
    table = Lookup(counts.shape, counts.ring, circle.id_bits, tuple(int(i > 0) for i in range(1 << counts.ring)))
    return b.emit(table, [counts], [(circle.id_bits, 0, counts.shape, 0.0)])[0]


def _exponential(b: Builder, x: Wire, circle: ScoreType, dealt: ExponentialType) -> Wire:
    """Opened x < 0 -> [exp x] with 16 fraction bits, or DIGITS for the least of a row's largest. No round."""
    step = x.frac + circle.log_unit
    op = Exponential(
        x.shape, circle.ring, x.frac, step, *circle.window, dealt.ring, dealt.public_frac, dealt.dealt_frac
    )
    (e,) = b.emit(op, [x], [(dealt.ring, dealt.public_frac + dealt.dealt_frac, x.shape, ROUNDED[1])])
    more = max(0, DIGITS + circle.octaves - NUMERATOR.frac)
    return truncate_to(b, e, NUMERATOR.frac + more, NUMERATOR.ring + more)


def reciprocal_of_sum(
    b: Builder, total: Wire, limits: tuple[float, float], alongside: tuple[Wire, ...] = (), parts: int = 1
) -> tuple[list[Part], list[Wire]]:
    """[sum E] within `limits` -> [1 / sum E], one number a row, as one part or two, of which one is 0; and the wires
    `alongside`, opened. 2 rounds."""
    if parts > 1:
        return reciprocal_in_parts(b, total, *limits, alongside=alongside)
    y, opened = inverse(b, total, *limits, root=False, alongside=alongside)
    return [Part(y, limits)], opened

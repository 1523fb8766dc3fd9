"""LayerNorm of rows: one opening of the row serves the square and the product, one of the result what reads it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, minus, multiply, square, sum_of_squares, truncate_to, widen
from ditto.functions.inverse import Tables, inverse_power, table_shifts
from ditto.functions.linear import WEIGHT_FRAC, fraction_bits, linear
from ditto.ops import Lookup, MatmulWeight
from ditto.ring.exact import ceil_log2, floor_log2

RESULT = FixedPoint(32, 8)
RESIDUAL = FixedPoint(24, 12)  # gamma z + beta, with fewer fraction bits where the next sum needs the room
MEAN_EXTRA = 4  # fraction bits of a row's mean beyond the row's own
MEAN_WEIGHT_FRAC = 18  # of gamma / H, where the mean's bound leaves room
DEVIATION = FixedPoint(24, 12)  # y of `inverse_deviation_by_table`
TABLE_INDEX_BITS = 14  # the most index bits of that table
INDEX_DIGITS = 8  # bits of the smallest variance's index in it
GUESS_DIGITS = 3  # bits of the smallest variance's index in a table of first guesses
MOST_JOINED = 3  # tables of first guesses, which one round joins
TABLE_RINGS = (40, 48, 56, 64)
SQUARE_RINGS = (40, 48, 56, 64)
STANDARDISED_RINGS = (48, 56, 64)  # of c y before its truncation
DIGITS = 9  # bits of the smallest variance, and of the smallest y, that are kept
RESOLVED = 6  # bits below the least deviation that what is normalized has, at least
PROJECTED_DIGITS = 10  # bits of x W below what makes 1 of its product with the largest y
OPENED_DIGITS = 7  # bits of the smallest y that its product with c keeps at least


@dataclass(frozen=True)
class Root:
    """How 1/sqrt of a variance is found, by the octaves of its range: bytes against rounds.

    `direct`: octaves up to which one table gives it, in one round, with an entry of 3 bytes for each of 2^(8 + octaves)
    indices. Beyond, tables give the first guess of a Newton step: one where at most `single` index bits serve, 3 more
    than the octaves (2 rounds, 2^single entries of up to 8 bytes), else three at most, joined (3 rounds).
    """

    direct: int = 0
    single: int = 10


FEWEST_BYTES, FEWEST_ROUNDS = Root(single=0), Root(direct=8)


@dataclass(frozen=True)
class NormType:
    """Fraction bits of the scaled variance v and of y = 1/sqrt(v)."""

    v: int
    y: int

    @classmethod
    def of(cls, lo: float, hi: float) -> NormType:
        """For lo <= v <= hi: p bits for the smallest variance and p for the smallest result, p up to DIGITS.

        The product v y^3 must fit 64 bits, y the 24 that its truncation leaves.
        """
        octaves = ceil_log2(hi / lo)
        p = min(DIGITS, (40 - octaves) // 3, (60 - 3 * octaves // 2) // 4)
        half = -(-ceil_log2(hi) // 2)  # ceil(log2(sqrt(hi)))
        return cls(max(0, p - floor_log2(lo)), max(1, p + half))


def nearest_log2(width: int) -> int:
    """log2 of a positive integer, rounded: the k with 2^(2k - 1) < width^2 < 2^(2k + 1)."""
    return ((2 * width * width).bit_length() - 1) // 2


def variance_scale(width: int) -> float:
    """v / var: v is the sum of H squares divided by a power of two in the place of H."""
    return math.ldexp(width, -nearest_log2(width))


def deviation_scale(width: int) -> float:
    """1/sqrt(var) = deviation_scale * y for the y of `inverse_deviation`: a factor that weights absorb."""
    return math.sqrt(variance_scale(width))


def _square_ring(c: Wire, limits: tuple[float, float]) -> int:
    need = 2 * c.frac + ceil_log2(limits[1] * c.shape[1]) + 2  # v is extended
    return next(ring for ring in SQUARE_RINGS if ring >= need)


def _scaled_variance(b: Builder, c: Wire, mean: Wire | None, limits: tuple[float, float], eps: float) -> Wire:
    """c by `widen` -> [v] = [(sum c^2 - H mean^2) / 2^k + eps H / 2^k], k = log2 H rounded, on the ring that it needs.

    No round. What the two terms exceed the ring by vanishes in their difference. mean: of each row, opened; None
    where it is 0.
    """
    width = c.shape[1]
    scale, limit, ring = variance_scale(width), limits[1] * width, _square_ring(c, limits)
    total = sum_of_squares(b, c, ring, limit)
    if mean is not None:
        more = 2 * (mean.frac - c.frac)
        squares = b.affine(square(b, mean, ring + more, bound=limit / width), -width, 0, 2 * mean.frac, bound=limit)
        total = b.add(total, b.truncate(squares, more, ring), bound=limit)
    v = b.retype(total, frac=total.frac + nearest_log2(width), bound=limits[1] * scale)
    return b.affine(v, 1, eps * scale, v.frac)


def inverse_deviation(b: Builder, v: Wire, lo: float, hi: float, single: int) -> Wire:
    """[v] by `_scaled_variance` -> [y] = [1/sqrt(v)] with p + 1 bits for the smallest, see NormType. lo <= v <= hi.

    2 rounds, and one where tables are joined (see `Root`). Relative error at most 2^-7, at the smallest index of a
    table, 7, where the guess is off by 1 / 14; 2^-13 on average over evenly distributed logarithms.
    """
    norm_type = NormType.of(lo, hi)
    v = b.truncate(v, v.frac - norm_type.v, min(v.ring - v.frac + norm_type.v, 40))
    y, _ = inverse_power(b, v, lo, hi, root=True, frac=norm_type.y, tables=_tables(v, lo, hi, norm_type.y, single))
    return y


def _tables(v: Wire, lo: float, hi: float, frac: int, single: int) -> Tables:
    """The smallest table that covers the range alone, if it has at most `single` index bits, or three at a time."""
    most = 1 / math.sqrt(lo / 2)
    bits = 3 * frac + ceil_log2(most * most * most) + 2
    ring = next(ring for ring in TABLE_RINGS if ring >= bits)
    sizes = [Tables(GUESS_DIGITS + octaves, octaves, fan_in=3, ring=ring) for octaves in range(1, TABLE_INDEX_BITS)]
    counts = [(len(table_shifts(v, lo, hi, tables)), tables) for tables in sizes]
    one = [tables for count, tables in counts if count == 1 and tables.index_bits <= single]
    return one[0] if one else next(tables for count, tables in counts if count <= MOST_JOINED)


def inverse_deviation_by_table(b: Builder, v: Wire, lo: float, hi: float) -> Wire:
    """The same on (24, 12) by one table of 2^n entries: one round, relative error 2^-9 and the result's rounding.

    n = 8 and the octaves of the range, at most 14: for 8 octaves the error is 2^-7 at the smallest variances. Where
    values are watched, v is opened beside its index.
    """
    n = min(TABLE_INDEX_BITS, INDEX_DIGITS + ceil_log2(hi / lo))
    # the largest index stays one below 2^n - 1, since truncation may add one
    cut = max(0, ceil_log2(math.ldexp(hi, v.frac) / ((1 << n) - 2)))
    index, *coarse = b.open(
        b.truncate(v, cut, n, bound=0.0),
        *([b.truncate(v, cut, v.ring - cut)] if b.guards else []),  # more of v, since an index that went round is one
    )
    for wire in coarse:
        b.watch(wire, 0.0, hi)
    most = 1 / math.sqrt(lo / 2)
    op = Lookup(index.shape, n, DEVIATION.ring, _root_table(n, cut - v.frac, most))
    return b.emit(op, [index], [(DEVIATION.ring, DEVIATION.frac, index.shape, most)])[0]


@functools.cache
def _root_table(n: int, unit: int, most: float) -> tuple[int, ...]:
    """1/sqrt at i 2^unit for every i on n bits, at most `most`; cached, since every stage of a job asks again."""
    at = (math.ldexp(max(i, 0.5), unit) for i in range(1 << n))
    return tuple(round(math.ldexp(min(1 / math.sqrt(v), most), DEVIATION.frac)) for v in at)


def _opened_digits(hi: float) -> int:
    """Fraction bits that leave the smallest y OPENED_DIGITS."""
    return max(DEVIATION.frac, OPENED_DIGITS + -(-ceil_log2(hi) // 2))


def _inverse_deviation(
    b: Builder, c: Wire, means: list[Wire], limits: tuple[float, float], eps: float, root: Root
) -> Wire:
    """c by `widen`, and its mean if it has one -> [y], with as many fraction bits as its products need."""
    v = _scaled_variance(b, c, means[0] if means else None, limits, eps)
    lo, hi = (limit * variance_scale(c.shape[1]) for limit in limits)
    by_table = ceil_log2(limits[1] / limits[0]) <= root.direct
    y = inverse_deviation_by_table(b, v, lo, hi) if by_table else inverse_deviation(b, v, lo, hi, root.single)
    return truncate_to(b, y, min(y.frac, _opened_digits(hi)))


def standardise(
    b: Builder,
    x: Wire,
    limits: tuple[float, float],
    eps: float,
    ring: int,
    root: Root = Root(),
    mean: Wire | None = None,
) -> Wire:
    """[x] (l, f), shape [rows, H], and [mean] (l', f'), [rows, 1] -> [(x - mean) / sqrt(var + eps) / s] on (`ring`, 8).

    s = deviation_scale(H). Without `mean` it is 0. 3 to 5 rounds, see `Root`. gamma and beta belong to what follows.
    limits: range of var, from calibration. Error: that of y, relative, and at most 2 ulp.
    1. Open x, and mean beside it; what extends x is dealt once for both products.
    2. v = (sum x^2 - H mean^2) / 2^k, k = log2 H rounded: local. y = 1/sqrt(v) by `inverse_deviation_by_table` or
       `inverse_deviation`.
    3. Open y; its products with x and mean extend all three; truncate.
    (PUMA section 4.3 for the order of steps.)
    """
    # 1
    c, *means = b.open(x, *(() if mean is None else (mean,)))
    digits = _opened_digits(limits[1] * variance_scale(c.shape[1]))
    most_wide = next(r for r in STANDARDISED_RINGS if r >= ring + c.frac + digits - RESULT.frac)
    c = widen(b, c, max(most_wide, _square_ring(c, limits)))
    # 2, 3
    (y,) = b.open(_inverse_deviation(b, c, means, limits, eps, root))
    frac = c.frac + y.frac
    wide = next(r for r in STANDARDISED_RINGS if r >= ring + frac - RESULT.frac)
    most = math.sqrt(2.0 * c.shape[1])  # |c| <= sqrt(H var), var at most twice v
    z = multiply(b, c, y, wide, bound=most, widened=True)
    for mean in means:
        more = mean.frac - c.frac
        shift = b.truncate(multiply(b, mean, y, wide + more, bound=most), more, wide)
        z = b.add(z, minus(b, shift), bound=most)
    return b.truncate(z, frac - RESULT.frac, ring)


def standardised_linear(
    b: Builder,
    x: Wire,
    limits: tuple[float, float],
    eps: float,
    ring: int,
    root: Root,
    name: str,
    columns: int,
    bound: float,
) -> Wire | None:
    """[x] (l, f), shape [rows, H], without a mean -> what `linear` gives of z by `standardise` on (`ring`, 8), opened:
    [z W + bias], |result| <= bound. 3 rounds or more, one less than both. None where x W has no room.

    y is one number a row, so z W = (x W) y, and x W need not wait for it. It costs an opening of all columns in the
    place of z's, which is little for few rows. Error: as theirs, and 2^-PROJECTED_DIGITS.
    1. Open x.
    2. [y] as `standardise` has it. Beside its first opening: x extended, by the first, and opened on the ring.
    3. [x W]; open it, and y; the product extends both; truncate; add the bias.
    """
    weight_frac = fraction_bits(bound, ring - RESULT.frac, WEIGHT_FRAC)
    lo, hi = (limit * variance_scale(x.shape[1]) for limit in limits)
    size = 2 * bound * math.sqrt(hi)  # the bias is in the bound: without it, the rest is at most twice that
    frac = fraction_bits(size, ring - weight_frac, x.frac)
    cut = x.frac - frac
    if frac < RESOLVED - floor_log2(lo) // 2 or x.ring >= ring + cut:
        return None
    # 1
    (c,) = b.open(x)
    # 2
    y = _inverse_deviation(b, widen(b, c, _square_ring(c, limits)), [], limits, eps, root)
    wide = b.extend(c, ring + cut)
    (factor,) = b.open(b.truncate(wide, cut, ring) if cut else wide)
    # 3
    weight = b.weight(f"{name}.weight", ring, weight_frac, (x.shape[1], columns), "matrix")
    op = MatmulWeight(x.shape[0], x.shape[1], columns, ring)
    (product,) = b.emit(op, [factor, weight], [(ring, frac + weight_frac, (x.shape[0], columns), size)])
    result = RESULT.frac + weight_frac
    most = min(64 - ring + result - y.frac, PROJECTED_DIGITS - floor_log2(lo) // 2)
    product, y = b.open(truncate_to(b, product, min(product.frac, most)), y)
    cut = product.frac + y.frac - result
    z = b.truncate(multiply(b, product, y, ring + cut, bound=2 * bound), cut, ring)
    return b.add(z, b.weight(f"{name}.bias", ring, result, (columns,), "share"), bound=bound)


def scale_and_shift(b: Builder, z: Wire, name: str, bound: float, frac: int) -> Wire:
    """Opened z -> [gamma' z + beta] on z's ring, with as many fraction bits as leave `frac` on the residual's ring
    after truncation. gamma' = gamma deviation_scale(H), under a fixed mask. No round."""
    cut = z.ring - RESIDUAL.ring
    gamma = b.weight(f"{name}.gamma", z.ring, frac + cut - z.frac, (z.shape[1],), "masked", bound=0.0)
    scaled = multiply(b, z, gamma, z.ring, bound=bound)
    beta = b.weight(f"{name}.beta", z.ring, scaled.frac, (z.shape[1],), "share")
    return b.add(scaled, beta, bound=bound)


def layernorm(b: Builder, z: Wire, name: str, bound: float) -> Wire:
    """Opened z by `standardise` -> LayerNorm's result [gamma' z + beta], with 8 fraction bits. No round.

    Error: 2 ulp, and gamma times that of z.
    """
    return truncate_to(b, scale_and_shift(b, z, name, bound, RESIDUAL.frac), RESULT.frac)


def layernorm_residual(b: Builder, z: Wire, name: str, bound: float, sum_bound: float) -> tuple[Wire, Wire]:
    """Opened z by `standardise` -> LayerNorm's result [gamma' z + beta] on (24, 12), or with fewer fraction bits where
    |sum| <= sum_bound needs it, and [its mean by row], [rows, 1], with MEAN_EXTRA more. No round.

    The next `standardise` takes the sum and the mean. Error: 1 ulp, and gamma times that of z.
    1. The product with gamma', beta added, truncated.
    2. The mean is z times gamma' / H and the mean of beta: a linear layer of one column.
    """
    frac = fraction_bits(sum_bound, RESIDUAL.ring, RESIDUAL.frac)
    # 1
    result = scale_and_shift(b, z, name, bound, frac)
    result = b.truncate(result, result.frac - frac, RESIDUAL.ring)
    # 2
    mean = linear(b, z, f"{name}.mean", 1, bound, MEAN_WEIGHT_FRAC)
    return result, truncate_to(b, mean, frac + MEAN_EXTRA)

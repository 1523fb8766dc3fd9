"""LayerNorm of rows without a mean: one opening of the row serves the square and the final product."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, minus, multiply, square, truncate_to
from ditto.functions.inverse import Tables, inverse_power
from ditto.functions.linear import fraction_bits
from ditto.ops import Lookup
from ditto.ring.exact import ceil_log2, floor_log2

Deviation = Literal["one table", "joined tables"]

RESULT = FixedPoint(32, 8)
RESIDUAL = FixedPoint(24, 12)  # the result less its row mean
WIDE = 64  # ring of the weights gamma and beta, and of products with them
GAMMA_FRAC = 12
SCALED = FixedPoint(32, 14)  # c gamma', with fewer fraction bits where its bound needs the room
PRODUCT_FRAC = 36  # of c gamma' y before truncation: leaves 1 / H at least 16 bits in `_less_mean`
MEAN_FRAC = 20  # of 1 / H, where the ring leaves room
ROOT_TABLES = Tables(index_bits=10)
DEVIATION = FixedPoint(24, 12)  # y of `inverse_deviation_by_table`
TABLE_OCTAVES, TABLE_INDEX_BITS = 8, 14  # the most that one table serves, and the most index bits that it has
INDEX_DIGITS = 8  # bits of the smallest variance's index in that table
SQUARE_RINGS = (40, 48, 56, 64)
STANDARDISED_RINGS = (48, 56, 64)  # of c y before its truncation


@dataclass(frozen=True)
class NormType:
    """Fraction bits of the scaled variance v and of y = 1/sqrt(v)."""

    v: int
    y: int

    @classmethod
    def of(cls, lo: float, hi: float) -> NormType:
        """For lo <= v <= hi: p bits for the smallest variance and p for the smallest result, p up to 11.

        The product v y^3 must fit 64 bits, y the 24 that its truncation leaves.
        """
        octaves = ceil_log2(hi / lo)
        p = min(11, (40 - octaves) // 3, (60 - 3 * octaves // 2) // 4)
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


def _scaled_variance(b: Builder, c: Wire, limits: tuple[float, float], eps: float, ring: int) -> Wire:
    """Opened c, rows of mean 0 -> [v] = [sum c^2 / 2^k + eps H / 2^k] on `ring`, k = log2 H rounded. No round."""
    width = c.shape[1]
    scale = variance_scale(width)
    total = b.sum(square(b, c, ring), 1, bound=limits[1] * width)
    v = b.retype(total, frac=total.frac + nearest_log2(width), bound=limits[1] * scale)
    return b.affine(v, 1, eps * scale, v.frac)


def inverse_deviation(b: Builder, c: Wire, limits: tuple[float, float], eps: float) -> Wire:
    """Opened c, rows of mean 0 -> [y] = [1/sqrt(v)], v by `_scaled_variance`. limits: range of var.

    Two rounds, and one more for each doubling of the tables that `inverse_power` needs.
    """
    lo, hi = (limit * variance_scale(c.shape[1]) for limit in limits)
    norm_type = NormType.of(lo, hi)
    v = _scaled_variance(b, c, limits, eps, WIDE)
    v = b.truncate(v, v.frac - norm_type.v)
    y, _ = inverse_power(b, v, lo, hi, root=True, frac=norm_type.y, tables=ROOT_TABLES)
    return y


def inverse_deviation_by_table(b: Builder, c: Wire, limits: tuple[float, float], eps: float) -> Wire:
    """The same [y] on (24, 12) by one table of 2^n entries: one round, relative error 2^-9 and the result's rounding.

    n = 8 and the octaves of the range, at most 14: for 8 octaves the error is 2^-7 at the smallest variances. The
    squares are on the smallest ring that holds their sum. Where values are watched, v is opened beside its index.
    """
    width = c.shape[1]
    lo, hi = (limit * variance_scale(width) for limit in limits)
    need = 2 * c.frac + ceil_log2(limits[1] * width) + 1
    v = _scaled_variance(b, c, limits, eps, next(ring for ring in SQUARE_RINGS if ring >= need))
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


def _deviation(how: Deviation) -> Callable[[Builder, Wire, tuple[float, float], float], Wire]:
    return inverse_deviation_by_table if how == "one table" else inverse_deviation


def standardise(
    b: Builder, x: Wire, limits: tuple[float, float], eps: float, ring: int, how: Deviation | None = None
) -> Wire:
    """[x] (l, f), shape [rows, H], rows of mean 0 -> [x / sqrt(var + eps) / deviation_scale(H)] on (`ring`, 8).

    3 rounds where the range of var has at most 8 octaves, else 4 or more. gamma and beta belong to the projection
    that follows. limits: range of var, from calibration. `how`: one table or several, whatever the range.
    1. Open x.
    2. y by `inverse_deviation_by_table`, for wider ranges by `inverse_deviation`.
    3. Open y, on no more than 12 fraction bits; the product with x extends both; truncate.
    """
    # 1
    (c,) = b.open(x)
    # 2
    by_table = ceil_log2(limits[1] / limits[0]) <= TABLE_OCTAVES
    y = _deviation(how or ("one table" if by_table else "joined tables"))(b, c, limits, eps)
    # 3
    (y,) = b.open(truncate_to(b, y, min(y.frac, DEVIATION.frac)))
    frac = c.frac + y.frac
    wide = next(r for r in STANDARDISED_RINGS if r >= ring + frac - RESULT.frac)
    z = multiply(b, c, y, wide, bound=math.sqrt(2.0 * c.shape[1]))  # |c| <= sqrt(H var), var at most twice v
    return b.truncate(z, frac - RESULT.frac, ring)


def layernorm(
    b: Builder, c: Wire, name: str, limits: tuple[float, float], eps: float, bound: float, sum_bound: float = 0.0,
    how: Deviation | None = None,
) -> tuple[Wire, Wire]:  # fmt: skip
    """[c] (l, f), shape [rows, H], rows of mean 0 -> [c / sqrt(var + eps) gamma + beta] on (32, 8), and the same less
    its row mean for the next residual sum, on (24, 12) or with fewer fraction bits where |sum| <= sum_bound needs it.

    4 rounds, and one for each doubling of the tables that `inverse_power` needs for the range;
    3 with `how` "one table".

    1. Open c once, on its ring: it serves the square and the product with gamma' (fixed mask), which both extend it.
    2. v = sum c^2 / 2^k, k = log2 H rounded; y = 1/sqrt(v) by `inverse_power` on one number a row.
    3. Open c gamma' and y, both narrow; their product extends both; add beta, truncate. gamma' = gamma sqrt(H / 2^k).
    4. The row mean of the result is a local sum, times 1 / H, truncated.
    The mean of c costs nothing since the caller's weights are centred. limits: range of var, from calibration.
    (PUMA section 4.3 for the order of steps.)
    """
    width = c.shape[1]
    # 1
    (c,) = b.open(c)
    # 2
    y = _deviation(how or "joined tables")(b, c, limits, eps)
    # 3
    gamma = b.weight(f"{name}.gamma", WIDE, GAMMA_FRAC, (width,), "masked", bound=0.0)
    most = 2 * bound * math.sqrt(limits[1] * variance_scale(width))  # |c gamma'| = |out - beta| / y
    scaled = multiply(b, c, gamma, WIDE, bound=most)
    frac = min(fraction_bits(most, SCALED.ring, SCALED.frac), PRODUCT_FRAC - y.frac)
    scaled, y = b.open(b.truncate(scaled, scaled.frac - frac, SCALED.ring), y)
    z = multiply(b, scaled, y, WIDE, bound=bound)
    beta = b.weight(f"{name}.beta", WIDE, z.frac, (width,), "share")
    z = b.add(z, beta, bound=bound)
    result = b.truncate(z, z.frac - RESULT.frac, RESULT.ring)
    # 4
    return result, _less_mean(b, z, fraction_bits(sum_bound, RESIDUAL.ring, RESIDUAL.frac))


def _less_mean(b: Builder, z: Wire, frac: int) -> Wire:
    """z less its row mean on (24, frac), as the next residual takes it. 1 / H has as many bits as the ring leaves."""
    bits = min(MEAN_FRAC, WIDE - RESIDUAL.ring + frac - z.frac)
    mean = b.affine(b.sum(z, 1), 1 / z.shape[1], 0, z.frac + bits, bound=z.bound)
    mean = b.truncate(mean, mean.frac - frac, RESIDUAL.ring)
    return b.add(b.truncate(z, z.frac - frac, RESIDUAL.ring), minus(b, mean), bound=2 * z.bound)

"""LayerNorm: one opening of the centred row serves the square and the final product."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, convert, minus, multiply, square, truncate_to
from ditto.functions.inverse import inverse_power
from ditto.functions.linear import fraction_bits
from ditto.ops import Lookup, Square

OUT_FRAC, RESIDUAL_FRAC, RESIDUAL_RING, GAMMA_FRAC = 8, 12, 24, 12
SCALED_FRAC = 14  # of c gamma, where its bound leaves room
TABLE_FRAC, TABLE_RING, TABLE_OCTAVES, TABLE_BITS = 12, 24, 8, 14
PRODUCT_FRAC = 36  # of the result before truncation: leaves 1 / H at least 16 bits in `_less_mean`


@dataclass(frozen=True)
class NormType:
    """Fraction bits of a LayerNorm over [lo, hi] (the range of its scaled variance), as `types` picks them."""

    v: int
    y: int


def types(lo: float, hi: float) -> NormType:
    """Precision from the range: p bits for the smallest variance and the smallest result.

    The product v y^3 must fit 64 bits, y the 24 that its truncation leaves.
    """
    octaves = math.ceil(math.log2(hi / lo))
    p = min(11, (40 - octaves) // 3, (60 - 3 * octaves // 2) // 4)
    return NormType(max(0, p - math.floor(math.log2(lo))), max(1, p + math.ceil(math.log2(hi) / 2)))


def constant(width: int) -> float:
    """1/sqrt(var) = constant * y for the y of `inverse_deviation`: a factor that weights absorb."""
    return math.sqrt(width / 2.0 ** round(math.log2(width)))


def inverse_deviation(b: Builder, c: Wire, limits: tuple[float, float], eps: float) -> tuple[Wire, float]:
    """Opened c, rows of mean 0 -> [y] = [1/sqrt(v)], v = sum c^2 / 2^k with k = log2 H rounded; the largest v.

    Two rounds, and one more for each doubling of the pieces that `inverse_power` needs.
    """
    width = c.shape[1]
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    norm_type = types(lo, hi)
    v = b.retype(b.sum(square(b, c, 64), 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = b.affine(v, 1, eps * width / 2.0**k, v.frac)
    v = b.truncate(v, v.frac - norm_type.v)
    y, _ = inverse_power(b, v, lo, hi, root=True, frac=norm_type.y, index_bits=10)
    return y, hi


def inverse_deviation_by_table(b: Builder, c: Wire, limits: tuple[float, float], eps: float) -> Wire:
    """The same [y] on (24, 12) by one table of 2^n entries: one round, relative error 2^-9 and the result's rounding.

    n = 8 and the octaves of the range, at most 14: for 8 octaves the error is 2^-7 at the smallest variances. The
    squares are on the smallest ring that holds their sum.
    """
    width = c.shape[1]
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    n = min(TABLE_BITS, 8 + math.ceil(math.log2(hi / lo)))
    bits = 2 * c.frac + math.ceil(math.log2(limits[1] * width)) + 1
    ring = next(r for r in (40, 48, 56, 64) if r >= bits)
    v = b.retype(b.sum(square(b, c, ring), 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = b.affine(v, 1, eps * width / 2.0**k, v.frac)
    cut = max(0, math.ceil(math.log2(hi * 2.0**v.frac / (2**n - 2))))
    (index,) = b.open(b.truncate(v, cut, n, bound=0.0))
    most = (lo / 2) ** -0.5
    op = Lookup(index.shape, n, TABLE_RING, _root_table(n, cut - v.frac, most))
    return b.emit(op, [index], [(TABLE_RING, TABLE_FRAC, index.shape, most)])[0]


@functools.cache
def _root_table(n: int, unit: int, most: float) -> tuple[int, ...]:
    """1/sqrt at i 2^unit for every i on n bits, at most `most`; cached, since every stage of a job asks again."""
    at = (max(i, 0.5) * 2.0**unit for i in range(1 << n))
    return tuple(round(min(a**-0.5, most) * 2.0**TABLE_FRAC) for a in at)


def standardise(b: Builder, x: Wire, limits: tuple[float, float], eps: float, ring: int) -> Wire:
    """[x] (l, f), shape [rows, H], rows of mean 0 -> [x / sqrt(var + eps) / constant(H)] on (`ring`, 8).

    3 rounds where the range of var has at most `TABLE_OCTAVES`, else 4 or more. gamma and beta belong to the
    projection that follows.
    1. Open x.  2. y by `inverse_deviation_by_table`, or by `inverse_deviation`.  3. Open y; the product extends both.
    """
    (c,) = b.open(x)
    if math.log2(limits[1] / limits[0]) <= TABLE_OCTAVES:
        y = inverse_deviation_by_table(b, c, limits, eps)
    else:
        y, _ = inverse_deviation(b, c, limits, eps)
        if y.frac > TABLE_FRAC:
            y = b.truncate(y, y.frac - TABLE_FRAC, y.ring - y.frac + TABLE_FRAC)
    (y,) = b.open(y)
    frac = c.frac + y.frac
    wide = next(r for r in (48, 56, 64) if r >= ring + frac - OUT_FRAC)
    z = multiply(b, c, y, wide, bound=math.sqrt(2.0 * c.shape[1]))  # |c| <= sqrt(H var), var at most twice v
    return b.truncate(z, frac - OUT_FRAC, ring)


def layernorm(
    b: Builder, c: Wire, name: str, limits: tuple[float, float], eps: float, bound: float
) -> tuple[Wire, Wire]:
    """[c] (l, f), shape [rows, H], rows of mean 0 -> [c / sqrt(var + eps) gamma + beta] on (32, 8), and the same less
    its row mean on (24, 12), for the next residual.

    4 rounds, and one for each doubling of the pieces that `inverse_power` needs for the range.

    1. Open c once, on its ring: it serves the square and the product with gamma' (fixed mask), which both extend it.
    2. v = sum c^2 / 2^k, k = log2 H rounded; y = 1/sqrt(v) by `inverse_power` on one number a row.
    3. Open c gamma' and y, both narrow; their product extends both. gamma' = gamma sqrt(H / 2^k).
    4. The row mean of the result is a local sum, times 1 / H, truncated.
    The mean of c costs nothing since the caller's weights are centred. limits: range of var, from calibration.
    (PUMA section 4.3 for the order of steps.)
    """
    width = c.shape[1]
    (c,) = b.open(c)
    y, hi = inverse_deviation(b, c, limits, eps)
    gamma = b.weight(f"{name}.gamma", 64, GAMMA_FRAC, (width,), "masked", bound=0.0)
    most = 2 * bound * math.sqrt(hi)  # |c gamma'| = |out - beta| / y
    scaled = multiply(b, c, gamma, 64, bound=most)
    frac = min(fraction_bits(most, 32, SCALED_FRAC), PRODUCT_FRAC - y.frac)
    scaled, y = b.open(b.truncate(scaled, scaled.frac - frac, 32), y)
    z = multiply(b, scaled, y, 64, bound=bound)
    beta = b.weight(f"{name}.beta", 64, z.frac, (width,), "share")
    z = b.add(z, beta, bound=bound)
    return b.truncate(z, z.frac - OUT_FRAC, 32), _less_mean(b, z)


def _less_mean(b: Builder, z: Wire) -> Wire:
    """z less its row mean, on (24, 12). 1 / H has as many bits as the ring leaves."""
    bits = min(20, 64 - RESIDUAL_RING + RESIDUAL_FRAC - z.frac)
    mean = b.affine(b.sum(z, 1), 1 / z.shape[1], 0, z.frac + bits, bound=z.bound)
    mean = b.truncate(mean, mean.frac - RESIDUAL_FRAC, RESIDUAL_RING)
    return b.add(b.truncate(z, z.frac - RESIDUAL_FRAC, RESIDUAL_RING), minus(b, mean), bound=2 * z.bound)


def recipe_layernorm(
    b: Builder,
    x: Wire,
    name: str,
    limits: tuple[float, float],
    eps: float,
    bound: float,
    fxp: FixedPoint,
    out: FixedPoint,
    rsqrt: Callable[[Builder, Wire, float, float], Wire],
) -> Wire:
    """[x] narrow, shape [rows, H] -> the same function in `fxp` (a full ring), back to `out`.

    1. Open x, extend; mean = sum / H, truncated and extended again (one number a row).
    2. Open c = x - mean once.  3. v = sum c^2 / 2^k, truncated; [y] = `rsqrt`(v) by the recipe.
    4. c y gamma' in one product of three opened factors; truncate to `out`: down, and up again where its ring needs it.
    (PUMA section 4.3; Ditto section 4.1 for the types.)
    """
    width = x.shape[1]
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    (narrow,) = b.open(x)
    wide = b.affine(b.extend(narrow, fxp.ring), 1, 0, fxp.frac)
    total = b.affine(b.sum(wide, 1), 1 / width, 0, fxp.frac + 20, bound=x.bound)
    mean = convert(b, total, fxp)
    (c,) = b.open(b.add(wide, minus(b, mean), bound=2 * x.bound))
    (squared,) = b.emit(Square(c.shape, fxp.ring), [c], [(fxp.ring, 2 * c.frac, c.shape, c.bound**2)])
    v = b.retype(b.sum(squared, 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = truncate_to(b, b.affine(v, 1, eps * width / 2.0**k, v.frac), fxp.frac)
    (y,) = b.open(rsqrt(b, v, lo, hi))
    (y,) = b.open(b.extend(y, fxp.ring))
    gamma = b.weight(f"{name}.gamma", fxp.ring, fxp.frac, (width,), "masked", bound=0.0)
    frac = c.frac + y.frac + fxp.frac
    beta = b.weight(f"{name}.beta", fxp.ring, frac, (width,), "share")
    z = b.add(b.product3(c, y, gamma, bound), beta, bound=bound)
    return convert(b, z, out)

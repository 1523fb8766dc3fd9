"""LayerNorm: one opening of the centred row serves the square and the final product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ditto.functions.fixed import Type, down, minus, multiply, settle, square
from ditto.functions.linear import fraction_bits
from ditto.functions.power import inverse_power
from ditto.ops import Square
from ditto.program import Builder, Wire

OUT_FRAC, GAMMA_FRAC = 8, 12
DIVISOR_FRAC = 28  # of 1 / H: means may be far larger than what is left after them
SCALED_FRAC = 18  # of c gamma, where its bound leaves room


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


def layernorm(
    b: Builder, x: Wire, name: str, limits: tuple[float, float], eps: float, bound: float, mean: float
) -> Wire:
    """[x] (l, f), shape [rows, H] -> [(x - mean) / sqrt(var + eps) gamma + beta] on (32, 8).

    5 rounds, and one for each doubling of the pieces that `inverse_power` needs for the range.

    1. Open the row sums and extend them; mean = sum / H, truncated back onto x's ring. (Where sums or x - mean do
       not fit x's ring: open x, extend, then sum; go on with 8 bits more.)
    2. Open c = x - mean once, on that ring: it serves the square and the product with gamma' (fixed mask), which
       both extend it.
    3. v = sum c^2 / 2^k, k = log2 H rounded; y = 1/sqrt(v) by `inverse_power` on one number a row.
    4. Open c gamma' and y, both narrow; their product extends both. gamma' = gamma sqrt(H / 2^k).
    limits: range of var; mean: bound of |row mean|, both from calibration. (PUMA section 4.3 for the order of steps.)
    """
    width = x.shape[1]
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    kind = types(lo, hi)
    room = 2.0 ** (x.ring - 2 - x.frac)
    if mean * width <= room and 2 * x.bound <= room:
        (total,) = b.open(b.sum(x, 1, bound=mean * width))
        total = b.extend(total, 64)
    else:
        (narrow,) = b.open(x)
        wide = b.extend(narrow, 64)
        total = b.sum(wide, 1)
        x = b.truncate(wide, 0, x.ring + 8)
    scaled = b.affine(total, 1 / width, 0, x.frac + DIVISOR_FRAC, bound=x.bound)
    (c,) = b.open(b.add(x, minus(b, b.truncate(scaled, DIVISOR_FRAC, x.ring)), bound=2 * x.bound))
    v = b.retype(b.sum(square(b, c, 64), 1, bound=limits[1] * width), frac=2 * x.frac + k, bound=hi)
    v = b.affine(v, 1, eps * width / 2.0**k, v.frac)
    v = b.truncate(v, v.frac - kind.v)
    y = inverse_power(b, v, lo, hi, root=True, frac=kind.y, index_bits=10)
    gamma = b.weight(f"{name}.gamma", 64, GAMMA_FRAC, (width,), "masked", bound=0.0)
    most = 2 * bound * math.sqrt(limits[1])  # |c gamma| = |out - beta| / y
    c = multiply(b, c, gamma, 64, bound=most)
    frac = min(fraction_bits(most, 32, SCALED_FRAC), 32 + OUT_FRAC - y.frac)
    c, y = b.open(b.truncate(c, c.frac - frac, 32), y)
    z = multiply(b, c, y, 64, bound=bound)
    beta = b.weight(f"{name}.beta", 64, z.frac, (width,), "share")
    return b.truncate(b.add(z, beta, bound=bound), z.frac - OUT_FRAC, 32)


def recipe_layernorm(
    b: Builder,
    x: Wire,
    name: str,
    limits: tuple[float, float],
    eps: float,
    bound: float,
    kind: Type,
    out: Type,
    rsqrt: Callable[[Builder, Wire, float, float], Wire],
) -> Wire:
    """[x] narrow, shape [rows, H] -> the same function in `kind` (a full ring), back to `out`.

    1. Open x, extend; mean = sum / H, truncated and extended again (one number a row).
    2. Open c = x - mean once.  3. v = sum c^2 / 2^k, truncated; [y] = `rsqrt`(v) by the recipe.
    4. c y gamma' in one product of three opened factors; truncate to `out`: down, and up again where its ring needs it.
    (PUMA section 4.3; Ditto section 4.1 for the types.)
    """
    width = x.shape[1]
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    (narrow,) = b.open(x)
    wide = b.affine(b.extend(narrow, kind.ring), 1, 0, kind.frac)
    total = b.affine(b.sum(wide, 1), 1 / width, 0, kind.frac + 20, bound=x.bound)
    mean = settle(b, total, kind)
    (c,) = b.open(b.add(wide, minus(b, mean), bound=2 * x.bound))
    (squared,) = b.emit(Square(c.shape, kind.ring), [c], [(kind.ring, 2 * c.frac, c.shape, c.bound**2)])
    v = b.retype(b.sum(squared, 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = down(b, b.affine(v, 1, eps * width / 2.0**k, v.frac), kind.frac)
    (y,) = b.open(rsqrt(b, v, lo, hi))
    (y,) = b.open(b.extend(y, kind.ring))
    gamma = b.weight(f"{name}.gamma", kind.ring, kind.frac, (width,), "masked", bound=0.0)
    frac = c.frac + y.frac + kind.frac
    beta = b.weight(f"{name}.beta", kind.ring, frac, (width,), "share")
    z = b.add(b.product3(c, y, gamma, bound), beta, bound=bound)
    return settle(b, z, out)

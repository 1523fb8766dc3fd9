"""LayerNorm: one opening of the centred row serves the square and the final product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ditto.functions.fixed import Type, down, minus, settle
from ditto.functions.power import inverse_power
from ditto.ops import Square, TruncatePair
from ditto.program import Builder, Wire

OUT_FRAC = 8


@dataclass(frozen=True)
class NormType:
    """Fraction bits of a LayerNorm over [lo, hi] (the range of its scaled variance), as `types` picks them."""

    k: int  # the sum of squares is divided by 2^k; gamma absorbs sqrt(H / 2^k)
    v: int
    y: int
    gamma: int


def types(width: int, lo: float, hi: float, frac: int = 12) -> NormType:
    """Precision from the range: p bits for the smallest variance and the smallest result.

    The product v y^3 must fit 64 bits, y the 24 that its truncation leaves, and c y gamma 40 fraction bits.
    """
    octaves = math.ceil(math.log2(hi / lo))
    p = min(11, (40 - octaves) // 3, (60 - 3 * octaves // 2) // 4)
    v, y = max(0, p - math.floor(math.log2(lo))), max(1, p + math.ceil(math.log2(hi) / 2))
    return NormType(round(math.log2(width)), v, y, min(12, 40 - frac - y - 1))


def layernorm(b: Builder, x: Wire, name: str, limits: tuple[float, float], eps: float, bound: float) -> Wire:
    """[x] (l, f), shape [rows, H] -> [(x - mean) / sqrt(var + eps) gamma + beta] on (32, 8).

    7 rounds, and one for each doubling of the pieces that `inverse_power` needs for the range.

    1. Open x, extend to 64 bits; mean = sum / H through a truncation pair (one round).
    2. Open c = x - mean (64, f) once: it serves the square and the last product.
    3. v = sum c^2 / 2^k; y = 1/sqrt(v) by `inverse_power` on one number a row.
    4. c y gamma' in one product of three opened factors; gamma' = gamma sqrt(H / 2^k) has a fixed mask.
    limits: range of var in calibration. (PUMA section 4.3 for the order of steps; openings as DESIGN section 4.)
    """
    width = x.shape[1]
    scale = width / 2.0 ** round(math.log2(width))
    lo, hi = limits
    kind = types(width, lo * scale, hi * scale, x.frac)
    (narrow,) = b.open(x)
    wide = b.extend(narrow, 64)
    total = b.affine(b.sum(wide, 1), 2.0**-20 * round(2.0**20 / width), 0, x.frac + 20, bound=x.bound)
    b.fits(total, 2)
    (total,) = b.open(total)
    (mean,) = b.emit(TruncatePair(total.shape, 64, 20), [total], [(64, x.frac, total.shape, x.bound)])
    (c,) = b.open(b.add(wide, b.affine(mean, -1, 0, x.frac), bound=2 * x.bound))
    (square,) = b.emit(Square(c.shape, 64), [c], [(64, 2 * x.frac, c.shape, c.bound**2)])
    v = b.retype(b.sum(square, 1, bound=hi * width), frac=2 * x.frac + kind.k, bound=hi * scale)
    v = b.affine(v, 1, eps * scale, v.frac)
    v = b.truncate(v, v.frac - kind.v)
    y = inverse_power(b, v, lo * scale, hi * scale, root=True, frac=kind.y, index_bits=10)
    (narrow,) = b.open(y)
    (y_open,) = b.open(b.extend(narrow, 64))
    gamma = b.weight(f"{name}.gamma", 64, kind.gamma, (width,), "masked", bound=0.0)
    frac = c.frac + y_open.frac + kind.gamma
    beta = b.weight(f"{name}.beta", 64, frac, (width,), "share")
    z = b.add(b.product3(c, y_open, gamma, bound), beta, bound=bound)
    return b.truncate(z, frac - OUT_FRAC, 32)


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
    total = b.affine(b.sum(wide, 1), 2.0**-20 * round(2.0**20 / width), 0, kind.frac + 20, bound=x.bound)
    mean = settle(b, total, kind)
    (c,) = b.open(b.add(wide, minus(b, mean), bound=2 * x.bound))
    (square,) = b.emit(Square(c.shape, kind.ring), [c], [(kind.ring, 2 * c.frac, c.shape, c.bound**2)])
    v = b.retype(b.sum(square, 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = down(b, b.affine(v, 1, eps * width / 2.0**k, v.frac), kind.frac)
    (y,) = b.open(rsqrt(b, v, lo, hi))
    (y,) = b.open(b.extend(y, kind.ring))
    gamma = b.weight(f"{name}.gamma", kind.ring, kind.frac, (width,), "masked", bound=0.0)
    frac = c.frac + y.frac + kind.frac
    beta = b.weight(f"{name}.beta", kind.ring, frac, (width,), "share")
    z = b.add(b.product3(c, y, gamma, bound), beta, bound=bound)
    return settle(b, z, out)

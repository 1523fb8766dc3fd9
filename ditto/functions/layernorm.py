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

OUT_FRAC, RESIDUAL_FRAC, RESIDUAL_RING, GAMMA_FRAC = 8, 12, 24, 12
SCALED_FRAC = 14  # of c gamma, where its bound leaves room
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
    k = round(math.log2(width))
    lo, hi = (limit * width / 2.0**k for limit in limits)
    kind = types(lo, hi)
    (c,) = b.open(c)
    v = b.retype(b.sum(square(b, c, 64), 1, bound=limits[1] * width), frac=2 * c.frac + k, bound=hi)
    v = b.affine(v, 1, eps * width / 2.0**k, v.frac)
    v = b.truncate(v, v.frac - kind.v)
    y, _ = inverse_power(b, v, lo, hi, root=True, frac=kind.y, index_bits=10)
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

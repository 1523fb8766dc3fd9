"""LayerNorm of the published systems: in one type on a full ring, with its own mean."""

from __future__ import annotations

from collections.abc import Callable

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, convert, minus, truncate_to
from ditto.functions.layernorm import nearest_log2, variance_scale
from ditto.ops import Square

MEAN_FRAC = 20  # of 1 / H


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
    """[x] narrow, shape [rows, H] -> [(x - mean) / sqrt(var + eps) gamma + beta], computed in `fxp` (a full ring), in
    `out`.

    1. Open x, extend; mean = sum / H, truncated and extended again (one number a row).
    2. Open c = x - mean once.
    3. v = sum c^2 / 2^k, k = log2 H rounded, truncated; [y] = `rsqrt`(v) by the recipe.
    4. c y gamma' in one product of three opened factors, gamma' = gamma sqrt(H / 2^k); add beta; convert to `out`.
    limits: range of var, from calibration. (PUMA section 4.3; Ditto section 4.1 for the types.)
    """
    width = x.shape[1]
    scale = variance_scale(width)
    lo, hi = (limit * scale for limit in limits)
    # 1
    (narrow,) = b.open(x)
    wide = b.affine(b.extend(narrow, fxp.ring), 1, 0, fxp.frac)
    total = b.affine(b.sum(wide, 1), 1 / width, 0, fxp.frac + MEAN_FRAC, bound=x.bound)
    mean = convert(b, total, fxp)
    # 2
    (c,) = b.open(b.add(wide, minus(b, mean), bound=2 * x.bound))
    # 3
    (squared,) = b.emit(Square(c.shape, fxp.ring), [c], [(fxp.ring, 2 * c.frac, c.shape, c.bound * c.bound)])
    v = b.retype(b.sum(squared, 1, bound=limits[1] * width), frac=2 * c.frac + nearest_log2(width), bound=hi)
    v = truncate_to(b, b.affine(v, 1, eps * scale, v.frac), fxp.frac)
    y = rsqrt(b, v, lo, hi)
    # 4
    (y,) = b.open(y)
    (y,) = b.open(b.extend(y, fxp.ring))
    gamma = b.weight(f"{name}.gamma", fxp.ring, fxp.frac, (width,), "masked", bound=0.0)
    beta = b.weight(f"{name}.beta", fxp.ring, c.frac + y.frac + fxp.frac, (width,), "share")
    z = b.add(b.product3(c, y, gamma, bound), beta, bound=bound)
    return convert(b, z, out)

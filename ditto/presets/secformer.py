"""SecFormer (arXiv 2401.00793): Fourier GELU, 2Quad softmax, Goldschmidt division and inverse square root.

The published deflation constants (5000 and 2000) become the power of four above the calibrated range: with 16
fraction bits they would leave too few digits.
"""

import math

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import CRYPTEN, FixedPoint
from ditto.functions.gelu_published import fourier_gelu
from ditto.functions.inverse_published import deflated_reciprocal, deflated_rsqrt
from ditto.presets.recipe import Recipe
from ditto.ring.exact import ceil_log2


def _above(hi: float) -> float:
    return math.ldexp(1.0, 2 * -(-ceil_log2(hi) // 2))


def _reciprocal(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint) -> Wire:
    return deflated_reciprocal(b, v, _above(hi), fxp)


def _rsqrt(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint) -> Wire:
    return deflated_rsqrt(b, v, _above(hi), fxp)


STYLE = Recipe(
    linear_type=CRYPTEN,
    precise=CRYPTEN,
    gelu_type=CRYPTEN,
    gelu=fourier_gelu,
    reciprocal=_reciprocal,
    rsqrt=_rsqrt,
    squares=True,
)

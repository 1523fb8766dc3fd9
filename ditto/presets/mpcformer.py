"""MPCFormer (ICLR 2023) on CrypTen: 64 bits with 16 fraction bits, Quad GELU, 2Quad softmax, Newton inverses."""

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import CRYPTEN, FixedPoint
from ditto.functions.gelu_published import quad_gelu
from ditto.functions.inverse_published import newton_reciprocal, newton_rsqrt
from ditto.presets.recipe import Recipe


def _reciprocal(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint) -> Wire:
    return newton_reciprocal(b, v, hi, fxp)


def _rsqrt(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint) -> Wire:
    return newton_rsqrt(b, v, hi, fxp)


STYLE = Recipe(
    linear_type=CRYPTEN,
    precise=CRYPTEN,
    gelu_type=CRYPTEN,
    gelu=quad_gelu,
    reciprocal=_reciprocal,
    rsqrt=_rsqrt,
    squares=True,
)

"""MPCFormer (ICLR 2023) on CrypTen: 64 bits with 16 fraction bits, Quad GELU, 2Quad softmax, Newton inverses."""

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import CRYPTEN, Type
from ditto.functions.gelu_published import quad_gelu
from ditto.functions.inverse_published import newton_reciprocal, newton_rsqrt
from ditto.presets.recipe import Recipe


def _reciprocal(b: Builder, v: Wire, lo: float, hi: float, kind: Type) -> Wire:
    return newton_reciprocal(b, v, hi, kind)


def _rsqrt(b: Builder, v: Wire, lo: float, hi: float, kind: Type) -> Wire:
    return newton_rsqrt(b, v, hi, kind)


STYLE = Recipe(
    linear=CRYPTEN,
    precise=CRYPTEN,
    gelu_type=CRYPTEN,
    activation=quad_gelu,
    reciprocal=_reciprocal,
    rsqrt=_rsqrt,
    squares=True,
)

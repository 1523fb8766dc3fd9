"""A smooth function of one wire through harmonics: one opening of n bits."""

from __future__ import annotations

import math
from collections.abc import Callable

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Array, choose
from ditto.ops import Harmonic

INDEX_BITS = 12


def harmonic(
    b: Builder,
    x: Wire,
    g: Callable[[Array], Array],
    bound: float,
    *,
    odd: bool,
    tolerance: float,
    out_bound: float,
    bits: int = 32,
    fu: int = 11,
    fv: int = 10,
) -> Wire:
    """[g(x)] for |x| <= bound: (bits, fu + fv). One round.

    1. Truncate-reduce x to n = 12 bits over one period.  2. Open.  3. Harmonic.
    """
    period, c0, c, _ = choose(g, bound, tolerance, odd)
    frac = INDEX_BITS - int(math.log2(period))
    index = b.truncate(x, x.frac - frac, INDEX_BITS, bound=bound)
    (opened,) = b.open(index)
    zeros = (0.0,) * len(c)
    op = Harmonic(x.shape, INDEX_BITS, bits, fu, fv, c0, zeros if odd else c, c if odd else zeros)
    return b.emit(op, [opened], [(bits, fu + fv, x.shape, out_bound)])[0]

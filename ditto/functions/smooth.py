"""A smooth function of one wire through harmonics: one opening of n bits."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fit import Fits, Smooth
from ditto.ops import Harmonic

INDEX_BITS = 12
USELESS = 10  # times the tolerance: an error that answers do not survive


def harmonic(
    b: Builder,
    x: Wire,
    smooth: Smooth,
    bound: float,
    fits: Fits,
    *,
    tolerance: float,
    out_bound: float,
    bits: int = 32,
    fu: int = 11,
    fv: int = 10,
) -> Wire:
    """[g(x)] for |x| <= bound: (bits, fu + fv). One round.

    1. Truncate-reduce x to n = 12 bits over one period.  2. Open.  3. Harmonic, with the description's coefficients.
    Raises BadDescription where the description has no fit for this range, RangeError where the best one is useless.
    """
    fit = fits.find(smooth, bound, tolerance)
    if fit.error > USELESS * tolerance:
        raise RangeError(
            f"{b.place}: {smooth.name} on +-{bound:.4g} is off by {fit.error:.2g} with {len(fit.coefficients)} "
            "harmonics; calibrate on text nearer to yours, or take a preset with another function"
        )
    # 1
    index = b.truncate(x, x.frac - (INDEX_BITS - fit.period), INDEX_BITS, bound=bound)
    # 2
    (opened,) = b.open(index)
    # 3
    zeros = (0.0,) * len(fit.coefficients)
    cos, sin = (zeros, fit.coefficients) if fit.odd else (fit.coefficients, zeros)
    op = Harmonic(x.shape, INDEX_BITS, bits, fu, fv, fit.constant, cos, sin)
    return b.emit(op, [opened], [(bits, fu + fv, x.shape, out_bound)])[0]

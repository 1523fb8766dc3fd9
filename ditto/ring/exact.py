"""Numbers that come out alike on every processor: what both parties, or all processes, compute for themselves.

The C library's exp, log, cos and sin, and the vectorized ones of torch and numpy, differ in the last bit from one
processor to another.
"""

from __future__ import annotations

import math


def floor_log2(x: float) -> int:
    """The largest integer k with 2^k <= x. Raises ValueError unless x is positive and finite."""
    return _parts(x)[1] - 1


def ceil_log2(x: float) -> int:
    """The smallest integer k with 2^k >= x. Raises ValueError unless x is positive and finite."""
    mantissa, exponent = _parts(x)
    return exponent - 1 if mantissa == 0.5 else exponent


def _parts(x: float) -> tuple[float, int]:
    """x = mantissa 2^exponent with 1/2 <= mantissa < 1."""
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"logarithm of {x}: must be positive and finite")
    return math.frexp(x)

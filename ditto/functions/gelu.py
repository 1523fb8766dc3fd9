"""GELU through its even part: GELU(x) = x/2 + e(x), e smooth and even."""

from __future__ import annotations

import math

import numpy as np

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Array
from ditto.functions.linear import fraction_bits
from ditto.functions.smooth import harmonic


def even_part(x: Array) -> Array:
    erf: Array = np.array([math.erf(v) for v in (x / math.sqrt(2.0)).tolist()])
    return x * erf / 2


def gelu(b: Builder, x: Wire, bound: float) -> Wire:
    """[GELU(x)] of x (24, 12), |x| <= bound -> (24, 13), to about 0.01. One round.

    1. [e(x)] by harmonics on 12 opened bits.  2. Add x/2, a re-reading of x with one more fraction bit.
    """
    e = harmonic(b, x, even_part, bound, odd=False, tolerance=3.5e-3, out_bound=bound / 2 + 0.1)
    half = b.retype(x, frac=x.frac + 1, bound=bound / 2)
    return b.add(b.truncate(e, e.frac - half.frac, 24), half, bound=bound + 0.1)


def tanh_even_part(x: Array) -> Array:
    """Of GPT-2's GELU: x/2 tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    y: Array = x / 2 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return y


def tanh_gelu(b: Builder, x: Wire, bound: float, ring: int = 24) -> Wire:
    """[GELU x] of x (24, 12), |x| <= bound -> (16, f), f <= 8, by the tanh formula, to about 0.02. One round.

    Cheaper than `gelu` in dealer bytes, since the result is rounded to f bits anyway: harmonics on 24 bits, within
    the tolerance of that rounding; on 16 bits, f <= 6 and an error of about 0.05.
    """
    size = math.ceil(math.log2(bound + 0.1))
    digits = min(8, (ring - 2 - size) // 2)  # of each half of a harmonic: the result then extends from what is left
    wide = harmonic(
        b, x, tanh_even_part, bound, odd=False, tolerance=0.02, out_bound=bound / 2 + 0.1, bits=ring, fu=digits,
        fv=digits,
    )  # fmt: skip
    if ring == 16:
        return _sum(b, wide, x, bound, min(2 * digits, fraction_bits(bound + 0.1, 16, 6)))
    return _sum(b, wide, x, bound, fraction_bits(bound + 0.1, 16, 8))


def _sum(b: Builder, even: Wire, x: Wire, bound: float, frac: int) -> Wire:
    """The even part and x/2 at `frac` fraction bits, on what truncation leaves of 16."""
    ring = min(16, even.ring - even.frac + frac)
    half = b.retype(x, frac=x.frac + 1, bound=bound / 2)
    half = b.truncate(half, half.frac - frac, min(ring, half.ring - half.frac + frac))
    return b.add(b.truncate(even, even.frac - frac, ring), half, bound=bound + 0.1)

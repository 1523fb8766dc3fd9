"""GELU through its even part: GELU(x) = x/2 + e(x), e smooth and even."""

from __future__ import annotations

import math

import numpy as np

from ditto.functions.fit import Array
from ditto.functions.smooth import harmonic
from ditto.program import Builder, Wire


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

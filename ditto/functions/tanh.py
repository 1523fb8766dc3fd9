"""tanh by odd harmonics."""

from __future__ import annotations

import numpy as np

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Array
from ditto.functions.smooth import harmonic


def tangent(x: Array) -> Array:
    out: Array = np.tanh(x)
    return out


def tanh(b: Builder, x: Wire, bound: float) -> Wire:
    """[tanh(x)] of x (24, 12), |x| <= bound -> (32, 21), to about 0.01. One round."""
    return harmonic(b, x, tangent, bound, odd=True, tolerance=4e-3, out_bound=1.1)

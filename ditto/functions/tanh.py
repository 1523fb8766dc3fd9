"""tanh by odd harmonics."""

from __future__ import annotations

import numpy as np

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Array, Fits, Smooth
from ditto.functions.smooth import Part, harmonics


def _tanh(x: Array) -> Array:
    out: Array = np.tanh(x)
    return out


TANH = Smooth("tanh", _tanh, odd=True)
TOLERANCE, LARGEST = 4e-3, 1.1


def tanh(b: Builder, x: Wire, bound: float, fits: Fits) -> Wire:
    """[tanh(x)] of x (24, 12), |x| <= bound -> (32, 21), to about 0.01. One round."""
    return harmonics(b, [Part(x, fits.find(TANH, bound, TOLERANCE))], [LARGEST])[0]

"""GELU through its even part: GELU(x) = x/2 + e(x), e smooth and even."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Array, Fits, Smooth
from ditto.functions.linear import fraction_bits
from ditto.functions.smooth import Zone, harmonic
from ditto.ring.exact import ceil_log2

ROOM = 0.1  # of a result over what its bound says: the fit's own error
PRECISE, COARSE = 3.5e-3, 0.02  # tolerances of the fits
RESULT = 16  # ring bits of what `tanh_gelu` returns


def even_part(x: Array) -> Array:
    erf: Array = np.array([math.erf(v) for v in (x / math.sqrt(2.0)).tolist()])
    return x * erf / 2


def tanh_even_part(x: Array) -> Array:
    """Of GPT-2's GELU: x/2 tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    y: Array = x / 2 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return y


EVEN = Smooth("gelu", even_part, odd=False)
TANH_EVEN = Smooth("tanh gelu", tanh_even_part, odd=False)
FITTED = {"gelu": (EVEN, PRECISE), "tanh gelu": (TANH_EVEN, COARSE)}


def gelu_zones(function: str, neurons: Sequence[tuple[int, float]], fits: Fits) -> list[Zone]:
    """For (columns, bound) of a feed-forward network's neurons the fits by which `gelu` or `tanh_gelu` go.

    Neurons differ: on real models nine of ten stay within 4 to 7 where the widest reaches 25 to 100, and a harmonic fit
    costs about one harmonic for each unit of its bound. The scale of a zone's fit belongs to the weights: s GELU(x) =
    s x/2 + s e(x) of s x, so columns before take s, rows after 1/s.
    """
    smooth, tolerance = FITTED[function]
    return [Zone(columns, fits.find(smooth, bound, tolerance, free=True)) for columns, bound in neurons]


def gelu(b: Builder, x: Wire, bound: float, fits: Fits, zones: Sequence[Zone] = ()) -> Wire:
    """[GELU(x)] of x (24, 12), |x| <= bound -> (24, 13), to about 0.01. One round. `zones` as `harmonic` takes them.

    1. [e(x)] by harmonics on 12 opened bits.  2. Add x/2, a re-reading of x with one more fraction bit.
    """
    # 1
    e = harmonic(b, x, EVEN, bound, fits, tolerance=PRECISE, out_bound=bound / 2 + ROOM, zones=zones)
    # 2
    half = b.retype(x, frac=x.frac + 1, bound=bound / 2)
    return b.add(b.truncate(e, e.frac - half.frac, x.ring), half, bound=bound + ROOM)


def tanh_gelu(b: Builder, x: Wire, bound: float, fits: Fits, ring: int = 24, zones: Sequence[Zone] = ()) -> Wire:
    """[GELU x] of x (24, 12), |x| <= bound -> (16, f), f <= 8, by the tanh formula, to about 0.02. One round.
    `zones` as `harmonic` takes them.

    Cheaper than `gelu` in dealer bytes, since the result is rounded to f bits anyway: harmonics on 24 bits, within
    the tolerance of that rounding; on 16 bits, f <= 6 and an error of about 0.05.
    1. [e(x)] by harmonics.  2. Both e and x/2 cut to f fraction bits, and added.
    """
    # 1: as many bits of each half of a harmonic as let the result extend from what is left of the ring
    digits = min(8, (ring - 2 - ceil_log2(bound + ROOM)) // 2)
    even = harmonic(
        b, x, TANH_EVEN, bound, fits, tolerance=COARSE, out_bound=bound / 2 + ROOM, bits=ring, fu=digits, fv=digits,
        zones=zones,
    )  # fmt: skip
    # 2
    frac = fraction_bits(bound + ROOM, RESULT, 8 if ring > RESULT else min(2 * digits, 6))
    left = min(RESULT, even.ring - even.frac + frac)
    half = b.retype(x, frac=x.frac + 1, bound=bound / 2)
    half = b.truncate(half, half.frac - frac, min(left, half.ring - half.frac + frac))
    return b.add(b.truncate(even, even.frac - frac, left), half, bound=bound + ROOM)

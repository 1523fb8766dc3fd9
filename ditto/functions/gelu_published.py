"""GELU of the published systems: quadratic, piecewise polynomial, Fourier sine."""

from __future__ import annotations

import math

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, b2a, blend, less, minus, multiply, mux, square, truncate_to
from ditto.ops import Harmonic

PUMA_LOW = (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728)
PUMA_MID = (0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187)
FOURIER_PERIOD, FOURIER_EDGE = 20.0, 1.7
FOURIER_ERF = (  # 2/10 times the integral of erf(t) sin(k pi t / 10) on [0, 10], k = 1 to 7
    1.257723787, -0.029915383, 0.382154878, -0.051912294, 0.196033246, -0.062455681, 0.118091854,
)  # fmt: skip
INDEX_BITS = 12  # of a place in the period
SCALE_FRAC = 8  # of the factor that takes x there
SINE_FRAC = 12  # of a sine's public and of its dealt factor
SINES = FixedPoint(40, 2 * SINE_FRAC)


def quad_gelu(b: Builder, x: Wire, fxp: FixedPoint) -> Wire:
    """[x] narrow -> [0.125 x^2 + 0.25 x + 0.5] narrow = ((x + 1)^2 + 3) / 8. One round. (MPCFormer, section 3.1.)"""
    (opened,) = b.open(b.affine(x, 1, 1, x.frac))
    y = square(b, opened, fxp.ring)
    y = b.affine(y, 1, 3, y.frac)
    return truncate_to(b, b.retype(y, frac=y.frac + 3, bound=y.bound / 8), fxp.frac)


def puma_gelu(b: Builder, x: Wire, fxp: FixedPoint) -> Wire:
    """[x] narrow, on the ring that `fxp` leaves -> [GELU x] narrow, to 0.02. (PUMA section 4.1.)

    0 below -4, degree 3 on [-4, -1.95), degree 6 on [-1.95, 3), x from 3 on.
    1. Open x; bits [x < -4], [x < -1.95], [x < 3].
    2. x^2; x^3, x^4; x^6: a round each.
    3. Both polynomials, opened; the bits choose.
    Outside [-4, 3] the powers wrap; their value is not chosen.
    """
    # 1
    (x1,) = b.open(x)
    lowest, low, mid = less(b, x1, [-4.0, -1.95, 3.0])
    # 2
    near = b.retype(x1, bound=4.0)
    (x2,) = b.open(truncate_to(b, square(b, near, fxp.ring), fxp.frac))
    cube, fourth = multiply(b, near, x2, fxp.ring), square(b, x2, fxp.ring)
    x3, x4 = b.open(truncate_to(b, cube, fxp.frac), truncate_to(b, fourth, fxp.frac))
    (x6,) = b.open(truncate_to(b, square(b, x3, fxp.ring), fxp.frac))
    # 3
    wide = {power: b.extend(w, fxp.ring) for power, w in ((1, near), (2, x2), (3, x3), (4, x4), (6, x6))}

    def piece(c: tuple[float, ...]) -> Wire:
        terms = [(a, wide[i]) for i, a in enumerate(c) if i and a]
        return truncate_to(b, blend(b, terms, c[0], 2 * fxp.frac, 64.0), fxp.frac)

    f, g = b.open(piece(PUMA_LOW), piece(PUMA_MID))
    # [x < -1.95] f - [x < -4] f  +  [x < 3] g - [x < -1.95] g  +  x - [x < 3] x
    chosen = [mux(b, low, f), minus(b, mux(b, lowest, f)), mux(b, mid, g), minus(b, mux(b, low, g))]
    return b.add(*chosen, x, minus(b, mux(b, mid, x1)), bound=x.bound)


def fourier_gelu(b: Builder, x: Wire, fxp: FixedPoint) -> Wire:
    """[x] narrow -> [x/2 (1 + erf(x / sqrt 2))] narrow with erf by seven sines. (SecFormer section 3.2.)

    1. Scale x onto a circle of 2^12 steps for one period of 20 sqrt 2; open it, and x.
    2. The sum of sines by `Harmonic`; bits [x/sqrt 2 < -1.7], [x/sqrt 2 < 1.7]; erf is -1 and 1 outside.
    3. Open the sum; the bits choose; open 1 + erf; times x / 2.
    """
    edge = FOURIER_EDGE * math.sqrt(2)
    # 1
    scale = (1 << INDEX_BITS) / (FOURIER_PERIOD * math.sqrt(2))
    index = b.affine(b.retype(x, bound=0.0), scale, 0, x.frac + SCALE_FRAC)
    index, x1 = b.open(b.truncate(index, index.frac, INDEX_BITS), x)
    # 2
    no_cosines = (0.0,) * len(FOURIER_ERF)
    op = Harmonic(x.shape, INDEX_BITS, SINES.ring, SINE_FRAC, SINE_FRAC, 0.0, no_cosines, FOURIER_ERF)
    (sines,) = b.emit(op, [index], [(SINES.ring, SINES.frac, x.shape, 1.5)])
    low, high = less(b, x1, [-edge, edge])
    # 3
    (sines,) = b.open(truncate_to(b, sines, fxp.frac))
    inside = b.add(mux(b, high, sines), minus(b, mux(b, low, sines)), bound=1.5)
    outside = b.affine(b.add(b2a(b, high, sines.ring), b2a(b, low, sines.ring)), -1, 2, fxp.frac)
    # 1 + erf: 0 below, 1 + sines inside, 2 above; [x < edge] - [x < -edge] = 1 inside
    total = b.add(inside, outside, bound=2.5)
    (total,) = b.open(total)
    y = multiply(b, total, x1, fxp.ring)
    return truncate_to(b, b.retype(y, frac=y.frac + 1, bound=y.bound / 2), fxp.frac)

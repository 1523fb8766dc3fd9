"""Arithmetic in one fixed-point type, as recipes on full rings need it.

A product of two numbers with f fraction bits has 2 f; cutting f of them shrinks the ring by f bits (free, never a
wrap-around error). Such a narrow wire is opened on the ring it has, and the next product extends it in that same
opening: one opening of l - f bits for each multiplication, truncation included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.ops import B2A, Compare, Mux, SumOfSquares, Widen, WideProduct, WideSquare
from ditto.ops.product import broadcast


@dataclass(frozen=True)
class FixedPoint:
    """Ring bits and fraction bits."""

    ring: int
    frac: int


FXP32, FXP64 = FixedPoint(32, 8), FixedPoint(64, 18)  # Ditto, section 4.1
CRYPTEN = FixedPoint(64, 16)


def truncate_to(b: Builder, z: Wire, frac: int, most: int = 64) -> Wire:
    """[z] at `frac` fraction bits on what truncation leaves of the ring (at most `most` bits). Local."""
    if z.frac < frac:
        z = b.affine(z, 1, 0, frac)
    cut = z.frac - frac
    ring = min(z.ring - cut, most)
    return b.truncate(z, cut, ring) if cut or ring < z.ring else z


def convert(b: Builder, z: Wire, fxp: FixedPoint) -> Wire:
    """[z] -> [z] in `fxp`: local where its ring is left after truncation, else one opening and an extension."""
    if z.frac >= fxp.frac:
        z = truncate_to(b, z, fxp.frac, fxp.ring)
    if z.ring < fxp.ring:
        (opened,) = b.open(z)
        z = b.extend(opened, fxp.ring)
    # more fraction bits only after the extension: the narrow ring has no room for them
    return z if z.frac == fxp.frac else b.affine(z, 1, 0, fxp.frac)


def square(b: Builder, x: Wire, ring: int, bound: float | None = None) -> Wire:
    """Opened x on fewer than `ring` bits -> [x^2] on `ring`. No round."""
    b.fits(x, 2)
    limit = x.bound * x.bound if bound is None else bound
    return b.emit(WideSquare(x.shape, x.ring, ring), [x], [(ring, 2 * x.frac, x.shape, limit)])[0]


def widen(b: Builder, x: Wire, ring: int) -> Wire:
    """Opened x on fewer than `ring` bits, as products on up to `ring` share what extends it. No round."""
    b.fits(x, 2)
    op = Widen(x.shape, x.ring, ring)
    (wide,) = b.emit(op, [x], [(x.ring, x.frac, x.shape, x.bound)])
    b.program.sizes[wide.name] += op.held // 2  # of an opened wire they count twice
    return wide


def sum_of_squares(b: Builder, x: Wire, ring: int, bound: float) -> Wire:
    """x [rows, H] by `widen` -> [sum x^2 by row] on `ring`, [rows, 1]. No round."""
    return b.emit(SumOfSquares(x.shape, x.ring, ring), [x], [(ring, 2 * x.frac, (x.shape[0], 1), bound)])[0]


def multiply(b: Builder, x: Wire, y: Wire, ring: int, bound: float | None = None, widened: bool = False) -> Wire:
    """Opened x, y on at most `ring` bits -> [x y] on `ring`, with broadcasting. No round. `widened`: x by `widen`."""
    for wire in (x, y):
        if wire.ring < ring:
            b.fits(wire, 2)
    shape = broadcast(x.shape, y.shape)
    op = WideProduct((x.shape, y.shape), (x.ring, y.ring), ring, widened)
    return b.emit(op, [x, y], [(ring, x.frac + y.frac, shape, x.bound * y.bound if bound is None else bound)])[0]


def blend(b: Builder, terms: list[tuple[float, Wire]], constant: float, frac: int, bound: float) -> Wire:
    """sum_i a_i x_i + c with public a_i, c: wires of one ring, the result at `frac` fraction bits."""
    scaled = [b.affine(x, a, 0, frac, bound=bound) for a, x in terms]
    return b.affine(b.add(*scaled, bound=bound), 1, constant, frac, bound=bound)


def less(b: Builder, x: Wire, thresholds: list[float]) -> list[Wire]:
    """Opened x -> opened bits [x < t], one wire for each threshold. The differences must fit the ring."""
    b.fits(b.retype(x, bound=x.bound + max(abs(t) for t in thresholds)), 1)
    op = Compare(x.shape, x.ring, tuple(round(math.ldexp(t, x.frac)) for t in thresholds))
    (bits,) = b.emit(op, [x], [(1, 0, op.out, 1.0)])
    return [b.view(bits, slices=((0, i, i + 1),), shape=x.shape) for i in range(len(thresholds))]


def mux(b: Builder, bit: Wire, x: Wire) -> Wire:
    """Opened bit and opened x -> [bit x] on x's ring. No round."""
    op = Mux(bit.shape, x.shape, x.ring)
    return b.emit(op, [bit, x], [(x.ring, x.frac, broadcast(bit.shape, x.shape), x.bound)])[0]


def b2a(b: Builder, bit: Wire, ring: int) -> Wire:
    """Opened bit -> [bit] on `ring` as an integer. No round."""
    return b.emit(B2A(bit.shape, ring), [bit], [(ring, 0, bit.shape, 1.0)])[0]


def minus(b: Builder, x: Wire) -> Wire:
    return b.affine(x, -1, 0, x.frac)

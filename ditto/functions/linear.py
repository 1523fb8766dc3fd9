"""A linear layer with secret weights."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.ops import MatmulWeight
from ditto.ring.exact import ceil_log2

WEIGHT_FRAC = 12
SMALLEST = 1e-6  # a bound below counts as this


def fraction_bits(bound: float, ring: int, most: int) -> int:
    """The most fraction bits (up to `most`) with which |x| <= bound still extends from this ring."""
    return min(most, ring - 2 - ceil_log2(max(bound, SMALLEST)))


def linear(b: Builder, opened: Wire, name: str, columns: int, bound: float, weight_frac: int = WEIGHT_FRAC) -> Wire:
    """Opened x (l, f) -> [x W + bias] on (l, f + weight_frac), |result| <= bound. No round beyond the opening.

    Weights have fewer fraction bits where the result needs the room.
    """
    rows, inner = opened.shape
    ring = opened.ring
    weight_frac = fraction_bits(bound, ring - opened.frac, weight_frac)
    frac = opened.frac + weight_frac
    weight = b.weight(f"{name}.weight", ring, weight_frac, (inner, columns), "matrix")
    bias = b.weight(f"{name}.bias", ring, frac, (columns,), "share")
    op = MatmulWeight(rows, inner, columns, ring)
    (y,) = b.emit(op, [opened, weight], [(ring, frac, (rows, columns), bound)])
    return b.add(y, bias, bound=bound)

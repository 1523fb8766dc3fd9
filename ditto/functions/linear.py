"""A linear layer with secret weights."""

from __future__ import annotations

import math

from ditto.ops import MatmulWeight
from ditto.program import Builder, Wire

WEIGHT_FRAC = 12


def fraction_bits(bound: float, ring: int, most: int) -> int:
    """The most fraction bits (up to `most`) with which |x| <= bound still extends from this ring."""
    return min(most, ring - 2 - math.ceil(math.log2(max(bound, 1e-6))))


def linear(b: Builder, opened: Wire, name: str, columns: int, bound: float) -> Wire:
    """Opened x (32, f) -> [x W + bias] on (32, f + 12), |result| <= bound. No round beyond the opening."""
    rows, inner = opened.shape
    frac = opened.frac + WEIGHT_FRAC
    weight = b.weight(f"{name}.weight", 32, WEIGHT_FRAC, (inner, columns), "matrix")
    bias = b.weight(f"{name}.bias", 32, frac, (columns,), "share")
    op = MatmulWeight(rows, inner, columns, 32)
    (y,) = b.emit(op, [opened, weight], [(32, frac, (rows, columns), bound)])
    return b.add(y, bias, bound=bound)

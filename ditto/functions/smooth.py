"""A smooth function of one wire through harmonics: one opening of n bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fit import Fit, Fits, Smooth
from ditto.ops import Harmonic

INDEX_BITS = 12
USELESS = 10  # times the tolerance: an error that answers do not survive


class Zone(NamedTuple):
    """So many columns whose values stay in one range, and the function's fit there. They carry the fit's scale."""

    columns: int
    fit: Fit

    @property
    def bound(self) -> float:
        """Of the scaled values."""
        return self.fit.scale * self.fit.bound


def harmonic(
    b: Builder,
    x: Wire,
    smooth: Smooth,
    bound: float,
    fits: Fits,
    *,
    tolerance: float,
    out_bound: float,
    bits: int = 32,
    fu: int = 11,
    fv: int = 10,
    zones: Sequence[Zone] = (),
) -> Wire:
    """[g(x)] for |x| <= bound: (bits, fu + fv). One round.

    With `zones`, x [rows, columns] has scaled columns, each zone's with a fit of its own, and so has the result.
    1. Truncate-reduce x to n = 12 bits over one period, zone by zone.  2. Open.
    3. Harmonic, with the description's coefficients.
    Raises BadDescription where the description has no fit for this range, RangeError where the best one is useless.
    """
    parts = _parts(b, x, zones) if zones else [(x, fits.find(smooth, bound, tolerance))]
    for _, fit in parts:
        if fit.error > USELESS * tolerance:
            raise RangeError(
                f"{b.place}: {smooth.name} on +-{fit.bound:.4g} is off by {fit.error:.2g} with {len(fit.coefficients)} "
                "harmonics; calibrate on text nearer to yours, or take a preset with another function"
            )
    # 1
    indices = [
        b.truncate(part, x.frac - (INDEX_BITS - fit.period), INDEX_BITS, bound=fit.scale * fit.bound)
        for part, fit in parts
    ]
    # 2
    opened = b.open(*indices)
    # 3
    results = []
    for index, (_, fit) in zip(opened, parts, strict=True):
        values = tuple(fit.scale * c for c in fit.coefficients)
        zeros = (0.0,) * len(values)
        cos, sin = (zeros, values) if fit.odd else (values, zeros)
        op = Harmonic(index.shape, INDEX_BITS, bits, fu, fv, fit.scale * fit.constant, cos, sin)
        results += b.emit(op, [index], [(bits, fu + fv, index.shape, out_bound)])
    return b.join(*results, dim=1) if len(results) > 1 else results[0]


def _parts(b: Builder, x: Wire, zones: Sequence[Zone]) -> list[tuple[Wire, Fit]]:
    """The columns of each zone, and its fit."""
    if len(zones) == 1:
        return [(x, zones[0].fit)]
    parts, start = [], 0
    for zone in zones:
        parts.append((b.view(x, slices=((1, start, start + zone.columns),)), zone.fit))
        start += zone.columns
    return parts

"""Smooth functions through harmonics: one opening of n bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fit import Fit
from ditto.ops import Harmonic

INDEX_BITS = 12  # of an index, at most
USELESS = 10  # times the tolerance: an error that answers do not survive


class Zone(NamedTuple):
    """So many columns whose values stay in one range, and the function's fit there. They carry the fit's scale."""

    columns: int
    fit: Fit

    @property
    def bound(self) -> float:
        """Of the scaled values."""
        return self.fit.scale * self.fit.bound


def column_scales(zones: Sequence[Zone], columns: int) -> list[float]:
    """What each of so many columns carries of its zone's scale: ones without zones."""
    return [zone.fit.scale for zone in zones for _ in range(zone.columns)] or [1.0] * columns


def widest(zones: Sequence[Zone], otherwise: float) -> float:
    """The bound of all columns, their scales included; without zones what else is known."""
    return max((zone.bound for zone in zones), default=otherwise)


class Part(NamedTuple):
    """Columns x of one range, the fit there, the type of its harmonics (ring, public and dealt fraction bits), and the
    fraction bits of their index, at most."""

    x: Wire
    fit: Fit
    ring: int = 32
    fu: int = 11
    fv: int = 10
    index_frac: int = INDEX_BITS

    @property
    def index_bits(self) -> int:
        """Of a place in the period."""
        return min(INDEX_BITS, self.fit.period + self.index_frac)


def harmonics(b: Builder, parts: Sequence[Part], out_bounds: Sequence[float]) -> list[Wire]:
    """[g(x)] of each part by its fit: (ring, fu + fv). One round for all.

    1. Truncate-reduce x to n bits over one period, 12 at most.  2. Open.  3. Harmonic, with the fit's coefficients.
    A part's columns carry its fit's scale, and so does its result.
    Raises RangeError where a fit, the best that there is, is useless.
    """
    for part in parts:
        _check(b, part.fit)
    # 1
    indices = [
        b.truncate(p.x, p.x.frac - p.index_bits + p.fit.period, p.index_bits, bound=p.fit.scale * p.fit.bound)
        for p in parts
    ]
    # 2
    opened = b.open(*indices)
    # 3
    results = []
    for index, (_, fit, ring, fu, fv, _), bound in zip(opened, parts, out_bounds, strict=True):
        values = tuple(fit.scale * c for c in fit.coefficients)
        zeros = (0.0,) * len(values)
        cos, sin = (zeros, values) if fit.odd else (values, zeros)
        op = Harmonic(index.shape, index.ring, ring, fu, fv, fit.scale * fit.constant, cos, sin)
        results += b.emit(op, [index], [(ring, fu + fv, index.shape, bound)])
    return results


def _check(b: Builder, fit: Fit) -> None:
    if fit.error > USELESS * fit.tolerance:
        count = sum(c != 0 for c in fit.coefficients)
        raise RangeError(
            f"{b.place}: {fit.function} on +-{fit.bound:.4g} is off by {fit.error:.2g} with {count} harmonics; "
            "calibrate on text nearer to yours, or take a preset with another function"
        )

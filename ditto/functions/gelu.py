"""GELU through its even part: GELU(x) = x/2 + e(x), e smooth and even."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import RATIOS, Array, Fit, Fits, Smooth
from ditto.functions.linear import fraction_bits
from ditto.functions.smooth import INDEX_BITS, Part, Zone, harmonics

ROOM = 0.1  # of a result over what its bound says: the fit's own error
PRECISE, COARSE = 3.5e-3, 0.02  # tolerances of the fits
LOST = 0.875  # of a unit of the result's last place, to which a fit is held where that is more
INDEX_FRAC = 7  # fraction bits of the opened argument, at most: e moves by at most 0.63 of its rounding
STEPS = 0.2  # of the opened argument, to which a wide range's fit is held: e moves by up to half of each


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


@dataclass(frozen=True)
class GeluType:
    """What GELU is computed in: `ring` of its harmonics, `result` ring and `frac` fraction bits of what comes out.

    Harmonics have `digits` fraction bits, so many that the truncation to `frac` leaves `result` bits of the ring.
    Columns whose values do not extend from there are computed in `Part`'s own type, (32, 21).
    """

    ring: int = 24
    result: int = 14
    frac: int = 8

    @property
    def digits(self) -> int:
        return self.ring - self.result + self.frac

    def part(self, x: Wire, fit: Fit) -> Part:
        if fraction_bits(x.bound + ROOM, self.result, self.frac) < self.frac:
            return Part(x, fit, index_frac=INDEX_FRAC)
        return self.even(x, fit)

    def even(self, x: Wire, fit: Fit) -> Part:
        return Part(x, fit, self.ring, self.digits // 2, self.digits - self.digits // 2, INDEX_FRAC)


TYPES = {"precise": GeluType(), "narrow": GeluType(20, 13, 7), "coarse": GeluType(16, 12, 6)}


def gelu_tolerance(function: str, frac: int = GeluType.frac) -> float:
    """What a fit is held to whose result has `frac` fraction bits."""
    return max(FITTED[function][1], math.ldexp(LOST, -frac))


def zone_tolerance(function: str, bound: float, frac: int = GeluType.frac) -> float:
    """The same of a zone: a wide one's argument has wide steps, beside which a closer fit is not seen."""
    return max(gelu_tolerance(function, frac), STEPS * RATIOS[0] * bound / (1 << INDEX_BITS))


def gelu_zones(
    function: str, neurons: Sequence[tuple[int, float]], fits: Fits, frac: int = GeluType.frac
) -> list[Zone]:
    """For (columns, bound) of a feed-forward network's neurons the fits by which `gelu` goes, for results with `frac`
    fraction bits.

    Neurons differ: on real models nine of ten stay within 4 to 7 where the widest reaches 25 to 100, and a harmonic fit
    costs about one harmonic for each two units of its bound. The scale of a zone's fit belongs to the weights:
    s GELU(x) = s x/2 + s e(x) of s x, so columns before take s, rows after 1/s.
    """
    smooth, _ = FITTED[function]
    return [
        Zone(columns, fits.find(smooth, bound, zone_tolerance(function, bound, frac), True))
        for columns, bound in neurons
    ]


def gelu(
    b: Builder, function: str, x: Wire, bound: float, fits: Fits, kind: GeluType, zones: Sequence[Zone] = (),
    held_to: int = GeluType.frac,
) -> list[Wire]:  # fmt: skip
    """[GELU(x)] of x [rows, columns] (24, 12), |x| <= bound, side by side on (result, frac) of `kind`, to about 0.02
    for "gelu"; columns too wide for that, if any, on (19, frac). One round. Where `kind` has a wider result than x has
    bits for, x is opened, too, and x/2 extended.

    With `zones` its columns are scaled, each zone's with a fit of its own, and so is the result. Without them the fit
    is that for results with `held_to` fraction bits.
    1. [e(x)] by harmonics on up to 12 opened bits.  2. Add x/2, x re-read with one more fraction bit.  3. Truncate.
    """
    zones = zones or _as_one(function, x, bound, fits, held_to)
    # 1
    columns = [zone.columns for zone in zones]
    parts = [kind.part(column, zone.fit) for column, zone in _by_zone(b, x, zones)]
    halves = [part.x for part in parts]
    need = kind.result + x.frac + 1 - kind.frac  # the ring of x/2
    if need > x.ring:
        (opened,) = b.open(x)
        wide = _columns(b, b.extend(opened, need), columns)
        halves = [b.retype(half, bound=part.x.bound) for half, part in zip(wide, parts, strict=True)]
    even = harmonics(b, parts, [part.x.bound / 2 + ROOM for part in parts])
    results = []
    for _, group in groupby(zip(even, halves, strict=True), key=lambda pair: pair[0].ring):
        waves, lines = zip(*group, strict=True)
        e, half = _side_by_side(b, waves), _side_by_side(b, lines)
        # 2
        limit = half.bound + ROOM
        half = b.retype(half, frac=half.frac + 1, bound=half.bound / 2)
        if e.frac < half.frac:
            half = b.truncate(half, half.frac - e.frac, min(e.ring, half.ring - half.frac + e.frac))
        elif e.ring > half.ring:
            e = b.truncate(e, e.frac - half.frac, min(half.ring, e.ring - e.frac + half.frac))
        y = b.add(e, half, bound=limit)
        # 3
        cut = y.frac - kind.frac
        results.append(b.truncate(y, cut, y.ring - cut))
    return results


def gelu_even(
    b: Builder, function: str, x: Wire, bound: float, fits: Fits, kind: GeluType, zones: Sequence[Zone] = (),
    held_to: int = GeluType.frac,
) -> Wire:  # fmt: skip
    """[e(x)] = [GELU(x) - x/2] on (result, frac) of `kind`, whatever its ring: for a next product that has the half of
    x from elsewhere. x, zones and error as of `gelu`. One round, of 12 bits at most; nothing is extended.
    """
    zones = zones or _as_one(function, x, bound, fits, held_to)
    parts = [kind.even(column, zone.fit) for column, zone in _by_zone(b, x, zones)]
    e = _side_by_side(b, harmonics(b, parts, [part.x.bound / 2 + ROOM for part in parts]))
    return b.truncate(e, e.frac - kind.frac, kind.result)


def _as_one(function: str, x: Wire, bound: float, fits: Fits, held_to: int) -> list[Zone]:
    return [Zone(x.shape[1], fits.find(FITTED[function][0], bound, gelu_tolerance(function, held_to)))]


def _by_zone(b: Builder, x: Wire, zones: Sequence[Zone]) -> list[tuple[Wire, Zone]]:
    """The columns of each zone, with its bound."""
    columns = _columns(b, x, [zone.columns for zone in zones])
    return [(b.retype(column, bound=zone.bound), zone) for column, zone in zip(columns, zones, strict=True)]


def _columns(b: Builder, x: Wire, counts: Sequence[int]) -> list[Wire]:
    if len(counts) == 1:
        return [x]
    ends = list(accumulate(counts))
    return [b.view(x, slices=((1, end - count, end),)) for count, end in zip(counts, ends, strict=True)]


def _side_by_side(b: Builder, wires: Sequence[Wire]) -> Wire:
    return b.join(*wires, dim=1) if len(wires) > 1 else wires[0]

"""1/v and 1/sqrt(v) of one positive number a row over many octaves: piecewise tables and Newton steps."""

from __future__ import annotations

import functools
import math

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import multiply
from ditto.ops import Combine, OneHot


def _pieces(wire: Wire, lo: float, hi: float, n: int, octaves: int) -> list[int]:
    """Shifts t of the pieces, coarsest first: piece q indexes v >> t_q with n bits.

    A piece serves indices from 2^(n - octaves) - 1 up; the next one is 2^octaves times finer.
    """
    coarsest = max(0, math.ceil(math.log2(hi * 2.0**wire.frac / (2**n - 2))))
    shifts = [coarsest]
    while lo * 2.0**wire.frac / 2 ** shifts[-1] < 2 ** (n - octaves) - 1 and shifts[-1] > 0:
        shifts.append(max(0, shifts[-1] - octaves))
    return shifts


def inverse_power(
    b: Builder,
    v: Wire,
    lo: float,
    hi: float,
    *,
    root: bool,
    frac: int,
    index_bits: int = 7,
    octaves: int = 4,
    fan_in: int = 2,
    ring: int = 64,
    second: bool = False,
    alongside: tuple[Wire, ...] = (),
) -> tuple[Wire, list[Wire]]:
    """[v^-1] or (root) [v^-1/2] for lo <= v <= hi, v one number a row.

    1. Truncate-reduce v to n-bit indices, one for each piece of `octaves`; open them, and v for its extension: one
       round. The dealt one-hot vectors serve the tables of y, of y^d (d = 2, for the root 3) and of "go finer".
    2. Join the pieces by (Y, I) o (Y', I') = (Y + I Y', I I'): one round for each doubling, or (`fan_in` 3, with
       products of three) for each tripling.
    3. Newton from tables: y <- 2 y - v y^2, or (3 y - v y^3) / 2: one round. An index may be one too large (its
       truncation is stochastic), so tables hold g at the index itself: relative error 2^(octaves - n) at most (half
       of it for the root), before this step squares it.
    4. `second` (not for the root): y <- 2 y - v y y once more, two rounds.
    Tables are on `ring`. y has frac fraction bits (one more for the root). Wires `alongside` are opened in the first
    round and come back opened. Goldschmidt and Newton as in CrypTen, without its comparisons.
    """
    shifts, size, degree = _pieces(v, lo, hi, index_bits, octaves), 1 << index_bits, 3 if root else 2
    first = (size >> octaves) - 1
    power = -0.5 if root else -1.0
    most = (lo / 2) ** power
    indices = [b.truncate(v, t, index_bits, bound=0.0) for t in shifts]
    opened = b.open(*indices, v, *alongside)
    opened, v_narrow, others = opened[: len(indices)], opened[len(indices)], opened[len(indices) + 1 :]

    joined: list[tuple[Wire, Wire, Wire]] = []
    for q, (t, index) in enumerate(zip(shifts, opened, strict=True)):
        last = q == len(shifts) - 1
        (hot,) = b.emit(OneHot(v.shape, index_bits, ring), [index], [(ring, 0, (*v.shape, size), 1.0)])
        y, z, finer = _tables(index_bits, t - v.frac, power, degree, frac, most, 0 if last else first, first)
        tables = ((y, frac, most), (z, degree * frac, most**degree), (finer, 0, 1.0))
        joined.append(
            tuple(b.emit(Combine(ring, table), [hot], [(ring, f, v.shape, bound)])[0] for table, f, bound in tables)  # type: ignore[arg-type]
        )
    while len(joined) > 1:
        joined = _join(b, joined, fan_in)
    y0, z0, _ = joined[0]

    drop = v.frac + (degree - 1) * frac
    if second:
        v_open, z_open = b.open(b.extend(v_narrow, 64), z0)
        vz = b.product(v_open, z_open, bound=most)
    else:
        (z_open,) = b.open(z0)
        vz = multiply(b, v_narrow, z_open, 64, bound=most)
    vz = b.truncate(vz, drop, min(32, 64 - drop))
    y1 = b.add(b.affine(y0, 3 if root else 2, 0, frac), b.affine(vz, -1, 0, frac), ring=vz.ring, bound=3 * most)
    if root:
        return b.retype(y1, frac=frac + 1, bound=most), others
    y1 = b.retype(y1, bound=most)
    if second:
        (narrow,) = b.open(y1)
        (wide,) = b.open(b.extend(narrow, 64))
        correction = b.truncate(b.product3(wide, wide, v_open, most), v.frac + frac)
        y1 = b.retype(b.add(b.affine(y1, 2, 0, frac), b.affine(correction, -1, 0, frac), bound=3 * most), bound=most)
    return y1, others


@functools.cache
def _tables(
    n: int, unit: int, power: float, degree: int, frac: int, most: float, start: int, first: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """y = (i 2^unit)^power from entry `start` on, y^degree, and "go finer" below `first`, for every i on n bits.

    Cached, since every stage of a job asks again.
    """
    at = (max(i, 0.5) * 2.0**unit for i in range(1 << n))
    y = [min(a**power, most) if i >= start else 0.0 for i, a in enumerate(at)]
    return (
        tuple(round(g * 2.0**frac) for g in y),
        tuple(round(g**degree * 2.0 ** (degree * frac)) for g in y),
        tuple(int(i < first) for i in range(1 << n)),
    )


def _join(b: Builder, pieces: list[tuple[Wire, Wire, Wire]], fan_in: int) -> list[tuple[Wire, Wire, Wire]]:
    """Join neighbours, coarse to fine, two or three at a time; all products of one call share a round.

    A coarse value is 0 wherever its gate is 1, so a sum is no larger than its terms.
    """
    groups = [pieces[i : i + fan_in] for i in range(0, len(pieces), fan_in)]
    opened = iter(b.open(*(w for g in groups if len(g) > 1 for w in (g[0][2], *(w for fine in g[1:] for w in fine)))))
    out = []
    for group in groups:
        if len(group) == 1:
            out.append(group[0])
            continue
        gate = [next(opened)]
        y, z = [group[0][0]], [group[0][1]]
        for at in range(1, len(group)):
            fine_y, fine_z, finer = next(opened), next(opened), next(opened)
            y.append(_gated(b, gate, fine_y))
            z.append(_gated(b, gate, fine_z))
            if at == len(group) - 1:
                joined = b.add(*y, bound=y[0].bound), b.add(*z, bound=z[0].bound), _gated(b, gate, finer)
            gate.append(finer)
        out.append(joined)
    return out


def _gated(b: Builder, gates: list[Wire], x: Wire) -> Wire:
    """x under one or two gates, which are 0 or 1."""
    return b.product(gates[0], x) if len(gates) == 1 else b.product3(gates[0], gates[1], x, bound=x.bound)

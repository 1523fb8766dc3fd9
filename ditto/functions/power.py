"""1/v and 1/sqrt(v) of one positive number a row over many octaves: piecewise tables and Newton steps."""

from __future__ import annotations

import math

from ditto.ops import Combine, OneHot
from ditto.program import Builder, Wire


def _pieces(wire: Wire, lo: float, hi: float, n: int) -> list[int]:
    """Shifts t of the pieces, coarsest first: piece q indexes v >> t_q with n bits.

    A piece serves indices from 2^(n-4) - 1 up; the next one is 16 times finer.
    """
    coarsest = max(0, math.ceil(math.log2(hi * 2.0**wire.frac / (2**n - 2))))
    shifts = [coarsest]
    while lo * 2.0**wire.frac / 2 ** shifts[-1] < 2 ** (n - 4) - 1 and shifts[-1] > 0:
        shifts.append(max(0, shifts[-1] - 4))
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
    second: bool = False,
    alongside: tuple[Wire, ...] = (),
) -> tuple[Wire, list[Wire]]:
    """[v^-1] or (root) [v^-1/2] for lo <= v <= hi, v one number a row.

    1. Truncate-reduce v to n-bit indices, one for each piece of 4 octaves; open them, and v for its extension: one
       round. The dealt one-hot vectors serve the tables of y, of y^d (d = 2, for the root 3) and of "go finer".
    2. Join the pieces by (Y, I) o (Y', I') = (Y + I Y', I I'): one round for each doubling.
    3. Newton from tables: y <- 2 y - v y^2, or (3 y - v y^3) / 2: one round. An index may be one too large (its
       truncation is stochastic), so tables hold g at the index itself: relative error 2^(4-n) at most, before
       this step squares it.
    4. `second` (not for the root): y <- 2 y - v y y once more, two rounds.
    y has frac fraction bits (one more for the root). Wires `alongside` are opened in the first round and come back
    opened. Goldschmidt and Newton as in CrypTen, without its comparisons.
    """
    shifts, size, degree = _pieces(v, lo, hi, index_bits), 1 << index_bits, 3 if root else 2
    first = size // 16 - 1
    power = -0.5 if root else -1.0
    most = (lo / 2) ** power
    indices = [b.truncate(v, t, index_bits, bound=0.0) for t in shifts]
    opened = b.open(*indices, v, *alongside)
    opened, v_narrow, others = opened[: len(indices)], opened[len(indices)], opened[len(indices) + 1 :]
    v64 = b.extend(v_narrow, 64)

    joined: list[tuple[Wire, Wire, Wire]] = []
    for q, (t, index) in enumerate(zip(shifts, opened, strict=True)):
        last = q == len(shifts) - 1
        at = [max(i, 0.5) * 2.0 ** (t - v.frac) for i in range(size)]
        y = [min(a**power, most) if last or i >= first else 0.0 for i, a in enumerate(at)]
        (hot,) = b.emit(OneHot(v.shape, index_bits, 64), [index], [(64, 0, (*v.shape, size), 1.0)])
        tables = (
            (tuple(round(g * 2.0**frac) for g in y), frac, most),
            (tuple(round(g**degree * 2.0 ** (degree * frac)) for g in y), degree * frac, most**degree),
            (tuple(int(i < first) for i in range(size)), 0, 1.0),
        )
        joined.append(
            tuple(b.emit(Combine(64, table), [hot], [(64, f, v.shape, bound)])[0] for table, f, bound in tables)  # type: ignore[arg-type]
        )
    while len(joined) > 1:
        joined = _join(b, joined)
    y0, z0, _ = joined[0]

    v_open, z_open = b.open(v64, z0)
    drop = v.frac + (degree - 1) * frac
    vz = b.truncate(b.product(v_open, z_open, bound=most), drop, min(32, 64 - drop))
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


def _join(b: Builder, pieces: list[tuple[Wire, Wire, Wire]]) -> list[tuple[Wire, Wire, Wire]]:
    """Join neighbours (coarse, fine) pairwise; all products of one call share a round."""
    pairs = list(zip(pieces[::2], pieces[1::2], strict=False))
    opened = iter(b.open(*(w for coarse, fine in pairs for w in (coarse[2], *fine))))
    out = []
    for coarse, _ in pairs:
        gate, y, z, finer = next(opened), next(opened), next(opened), next(opened)
        out.append((b.add(coarse[0], b.product(gate, y)), b.add(coarse[1], b.product(gate, z)), b.product(gate, finer)))
    return out + ([pieces[-1]] if len(pieces) % 2 else [])

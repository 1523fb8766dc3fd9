"""exp by the limit (1 + x / 2^k)^(2^k), with or without clipping."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, less, minus, mux, square, truncate_to


def exponential(b: Builder, x: Wire, fxp: FixedPoint, k: int, floor: float | None = None) -> Wire:
    """[x] -> [exp x] for x <= 0 (up to rounding), on the ring that `fxp` leaves after a truncation.

    1. With a floor: open d = x - floor, bit = [d < 0], [x] <- floor + [d] - [bit d]. At floor -14 and k = 5 the
       result is below one unit, so clipping the input is PUMA's clipping of the result to 0.
    2. y = 1 + x / 2^k: a re-reading with k more fraction bits.
    3. k times: open y, [y] <- [y^2], truncate. One round each.
    Relative error about x^2 / 2^(k+1), and the rounding of k squarings. (PUMA section 4.2; CrypTen, k = 8.)
    """
    # 1
    if floor is not None:
        (d,) = b.open(x := b.affine(x, 1, -floor, x.frac))
        (bit,) = less(b, d, [0.0])
        rest = b.add(x, minus(b, mux(b, bit, d)), bound=-floor + 1)
        x = b.affine(rest, 1, floor, x.frac)
    # 2
    y = b.affine(b.retype(x, frac=x.frac + k, bound=x.bound / (1 << k)), 1, 1, x.frac + k, bound=3.0)
    # 3
    for _ in range(k):
        (opened,) = b.open(y)
        y = truncate_to(b, square(b, opened, fxp.ring, bound=3.0), fxp.frac)
    return y

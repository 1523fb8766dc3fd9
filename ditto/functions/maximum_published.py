"""The exact maximum of a row by a tournament of comparisons."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import less, minus, mux


def maximum(b: Builder, x: Wire) -> Wire:
    """[x], shape [..., N] -> [max over the last dimension], [..., 1], in x's type. Exact for |x| < 2^(l-3).

    ceil(log2 N) levels. At each, with left and right halves (of an odd row they overlap by one: harmless):
    1. Open d = left - right.
    2. bit = [d < 0] by `Compare`.
    3. [max] = [left] - [bit d].
    (Knott et al. 2021, CrypTen, tree reduction; PUMA section 4.2.)
    """
    axis = len(x.shape) - 1
    while (n := x.shape[axis]) > 1:
        half = (n + 1) // 2
        left = b.view(x, slices=((axis, 0, half),))
        right = b.view(x, slices=((axis, n - half, n),))
        # 1
        (d,) = b.open(b.add(left, minus(b, right), bound=2 * x.bound))
        # 2
        (bit,) = less(b, d, [0.0])
        # 3
        x = b.add(left, minus(b, mux(b, bit, d)), bound=x.bound)
    return x

"""ReLU by one comparison."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import less, minus, mux


def relu(b: Builder, x: Wire) -> Wire:
    """[x] (l, f) -> [max(x, 0)] in x's type, exact for every signed x of l bits. As many rounds as `Compare`, and one.

    1. Open x; bit = [x < 0] by `Compare`.  2. [x] - [bit x].
    (Comparison and multiplexer as in CrypTen, Knott et al. 2021.)
    """
    # 1
    (opened,) = b.open(x)
    (bit,) = less(b, opened, [0.0])
    # 2
    return b.add(x, minus(b, mux(b, bit, opened)), bound=x.bound)

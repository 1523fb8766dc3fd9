"""Numbers that come out alike on every processor, for what processes compute apart and must agree on.

The C library's exp, log, cos and sin, those of torch and numpy, and sums in an order that a library chooses differ in
the last bit from one processor to another. If public factors u at the two parties differ by one unit for that, the
product u [v] is garbage. Here, functions are computed in integers, and rounded once to the nearest float64. After that,
+, -, *, /, sqrt and floor of single elements are the same everywhere (IEEE 754), as long as each rounds for itself.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

Tensor = torch.Tensor
FRAC = 128  # fraction bits of the integers: 75 more than a float64 has, and few of them are lost
ONE = 1 << FRAC


def floor_log2(x: float) -> int:
    """The largest integer k with 2^k <= x. Raises ValueError unless x is positive and finite."""
    return _parts(x)[1] - 1


def ceil_log2(x: float) -> int:
    """The smallest integer k with 2^k >= x. Raises ValueError unless x is positive and finite."""
    mantissa, exponent = _parts(x)
    return exponent - 1 if mantissa == 0.5 else exponent


def _parts(x: float) -> tuple[float, int]:
    """x = mantissa 2^exponent with 1/2 <= mantissa < 1."""
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"logarithm of {x}: must be positive and finite")
    return math.frexp(x)


@lru_cache(maxsize=16)
def circle(n: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j / 2^n for j = 0 to 2^n - 1, n >= 2: float64 [2^n] each, not to be written to.

    1. The first quadrant, from the point (1, 0) alone: halve the step, cos^2 = (1 + cos) / 2 and sin^2 = (1 - cos) / 2
       of the whole one, and put behind every point the same point turned by it.
    2. Round. The other quadrants are the first one turned.
    Raises ValueError for fewer than 4 points.
    """
    if n < 2:
        raise ValueError(f"circle of 2^{n} points: at least 4")
    points, c = [(ONE, 0)], 0  # c: the cosine of the step, at first a quarter turn
    for _ in range(n - 2):  # 1
        c, s = math.isqrt((ONE + c) << (FRAC - 1)), math.isqrt((ONE - c) << (FRAC - 1))
        points = [p for x, y in points for p in ((x, y), ((x * c - y * s) >> FRAC, (x * s + y * c) >> FRAC))]
    x, y = (torch.tensor([a / ONE for a in part], dtype=torch.float64) for part in zip(*points, strict=True))  # 2
    return torch.cat([x, 0 - y, 0 - x, y]), torch.cat([y, x, 0 - y, 0 - x])


@lru_cache(maxsize=16)
def exponentials(frac: int, count: int) -> Tensor:
    """e^(j / 2^frac) for j = 0 to count - 1, frac >= 0: float64 [count], not to be written to.

    1. e^(2^-frac) by its series.
    2. Powers, from 1 alone: multiply all by the next square of it, and put them behind.
    3. Round.
    """
    base, term, k = 0, ONE, 0
    while term:  # 1
        base, k = base + term, k + 1
        term = (term >> frac) // k
    powers = [ONE]
    while len(powers) < count:  # 2
        powers += [(x * base) >> FRAC for x in powers]
        base = (base * base) >> FRAC
    return torch.tensor([x / ONE for x in powers[:count]], dtype=torch.float64)  # 3

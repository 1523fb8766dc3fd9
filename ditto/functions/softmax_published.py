"""Softmax of the published systems: by the exact maximum, and by squares instead of exponentials."""

from __future__ import annotations

from collections.abc import Callable

from ditto.engine.program import Builder, Wire
from ditto.functions.exponential_published import exponential
from ditto.functions.fixed import FixedPoint, convert, minus, multiply, square, truncate_to
from ditto.functions.maximum_published import maximum
from ditto.ops import Matmul
from ditto.ring.exact import ceil_log2

FLOOR, STEPS = -14.0, 5  # PUMA: exp is 0 below -14, (1 + x / 2^5)^(2^5) above
SHIFT = 5.0  # 2Quad: (x + 5)^2
MOST_SUM = 250.0  # 2Quad: what its sum is brought below, where the inverses converge


def exact_softmax(
    b: Builder,
    scores: Wire,
    fxp: FixedPoint,
    out: FixedPoint,
    reciprocal: Callable[[Builder, Wire, float, float], Wire],
) -> Wire:
    """[scores] narrow, shape [..., N], masked additively -> probabilities in `out`.

    1. Maximum by a tournament and the difference, in the scores' type.
    2. exp by the limit, clipped; its first square extends to `fxp`.
    3. 1 / sum, one number a row.
    4. exp times 1 / sum, truncated to `out`. (PUMA section 4.2; in Ditto the steps from 2 on are FXP64.)
    """
    # 1
    difference = b.add(scores, minus(b, maximum(b, scores)), bound=2 * scores.bound)
    # 2
    e = exponential(b, difference, fxp, STEPS, FLOOR)
    # 3
    n = scores.shape[-1]
    inverse = reciprocal(b, b.sum(e, len(scores.shape) - 1, bound=1.01 * n), 1.0, 1.01 * n)
    # 4
    e, inverse = b.open(e, inverse)
    return convert(b, multiply(b, e, inverse, fxp.ring, bound=1.1), out)


def quad_softmax(
    b: Builder, scores: Wire, keep: Wire, fxp: FixedPoint, inverse_of: Callable[[Builder, Wire, float], Wire]
) -> Wire:
    """[scores] narrow, shape [..., N], opened keep [..., N, 1] of zeros and ones -> [(x + 5)^2 / sum] in `fxp`.

    1. Open x + 5, square it, truncate, open.
    2. The sum counts what is kept; the caller leaves the rest out of the product with the values.
    3. 1 / sum, one number a row. The sum is divided by a power of two first, so that the inverse converges (as
       published, it overflows).
    4. The squares times 1 / sum; the power of two comes off by a re-reading.
    (MPCFormer section 3.1; SecFormer section 3.3.)
    """
    # 1
    (opened,) = b.open(b.affine(scores, 1, SHIFT, scores.frac))
    q = truncate_to(b, square(b, opened, fxp.ring), fxp.frac)
    (q,) = b.open(q)
    # 2
    op = Matmul(q.shape, keep.shape, q.ring)
    most = q.bound * scores.shape[-1]
    (total,) = b.emit(op, [q, keep], [(q.ring, q.frac, op.shape, most)])
    # 3
    shift = max(0, ceil_log2(most / MOST_SUM))
    most /= 1 << shift
    total = truncate_to(b, b.retype(total, frac=total.frac + shift, bound=most), fxp.frac)
    (inverse,) = b.open(inverse_of(b, total, most))
    # 4
    p = multiply(b, q, inverse, fxp.ring, bound=1.1 * (1 << shift))
    return convert(b, b.retype(p, frac=p.frac + shift, bound=1.1), fxp)

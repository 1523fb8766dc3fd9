"""1/v and 1/sqrt(v) as the published systems compute them: normalisation, Goldschmidt, Newton."""

from __future__ import annotations

import math
from collections.abc import Callable

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.exponential_published import exponential
from ditto.functions.fixed import FixedPoint, b2a, blend, less, minus, multiply, square, truncate_to
from ditto.ring.exact import ceil_log2, floor_log2

RSQRT = (4.14285016, -15.47994394, 38.4714796, -49.86605845, 26.02942339)  # on [1/4, 1/2), from SPU
GOLDSCHMIDT = 2.9142  # SPU's first guess of 1/u on [1/2, 1): this less 2 u
SQUARINGS = 8  # of CrypTen's exponential


def _power(k: int) -> float:
    """2^k."""
    return math.ldexp(1.0, k)


def _scales(
    b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint, functions: list[Callable[[int], float]]
) -> list[Wire]:
    """Opened v -> [g(e)] where 2^e <= v < 2^(e+1), for each g: the highest set bit by comparisons with 2^k."""
    first, last = floor_log2(lo), ceil_log2(hi)
    powers = list(range(first + 1, max(last, first + 2)))
    bits = [b2a(b, bit, fxp.ring) for bit in less(b, v, [_power(k) for k in powers])]
    out = []
    for g in functions:
        # [v < 2^k] holds for every k > e: the differences of g telescope from the last octave down to e
        terms = [(g(k - 1) - g(k), bit) for k, bit in zip(powers, bits, strict=True)]
        most = max(g(first), g(powers[-1]))
        out.append(blend(b, terms, g(powers[-1]), fxp.frac, most))
    return out


def goldschmidt_reciprocal(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint, steps: int = 2) -> Wire:
    """[v] narrow, lo <= v <= hi -> [1/v] narrow (SPU's division, which PUMA uses).

    1. u = v 2^-(e+1) in [1/2, 1) with 2^e <= v < 2^(e+1), from comparisons with the powers of two of the range.
    2. w = 2.9142 - 2 u; error d = 1 - u w = 1 - 2.9142 u + 2 u^2 (at most 0.086).
    3. `steps` times: w <- w (1 + d), d <- d^2.
    4. 1/v = w 2^-(e+1).
    """
    # 1
    (opened,) = b.open(v)
    (scale,) = b.open(*_scales(b, opened, lo, hi, fxp, [lambda e: _power(-(e + 1))]))
    (u,) = b.open(truncate_to(b, multiply(b, opened, scale, fxp.ring, bound=1.1), fxp.frac))
    # 2
    u2 = square(b, u, fxp.ring)
    wide = b.extend(u, fxp.ring)
    d = truncate_to(b, blend(b, [(-GOLDSCHMIDT, wide), (2.0, u2)], 1.0, 2 * fxp.frac, 1.0), fxp.frac)
    w = truncate_to(b, blend(b, [(-2.0, wide)], GOLDSCHMIDT, 2 * fxp.frac, 2.5), fxp.frac)
    # 3
    for step in range(steps):
        w_open, d_open = b.open(w, d)
        w = b.add(w, truncate_to(b, multiply(b, w_open, d_open, fxp.ring), fxp.frac), bound=2.5)
        if step < steps - 1:
            d = truncate_to(b, square(b, d_open, fxp.ring), fxp.frac)
    # 4
    (w_open,) = b.open(w)
    return truncate_to(b, multiply(b, w_open, scale, fxp.ring, bound=1.2 / lo), fxp.frac)


def polynomial_rsqrt(b: Builder, v: Wire, lo: float, hi: float, fxp: FixedPoint) -> Wire:
    """[v] narrow, lo <= v <= hi -> [1/sqrt v] narrow (SPU's, which PUMA uses).

    1. u = v 2^-(e+2) in [1/4, 1/2) with 2^e <= v < 2^(e+1), as for the reciprocal.
    2. p(u) of degree 4, as (c4 u^2 + c3 u + c2) u^2 + c1 u + c0.
    3. 1/sqrt(v) = p(u) 2^-((e+2)/2): the factor from the same comparisons.
    """
    # 1
    (opened,) = b.open(v)
    scales = _scales(b, opened, lo, hi, fxp, [lambda e: _power(-(e + 2)), lambda e: math.sqrt(_power(-(e + 2)))])
    scale, root = b.open(*scales)
    (u,) = b.open(truncate_to(b, multiply(b, opened, scale, fxp.ring, bound=0.6), fxp.frac))
    # 2
    c0, c1, c2, c3, c4 = RSQRT
    (u2,) = b.open(truncate_to(b, square(b, u, fxp.ring), fxp.frac))
    wide, wide2 = b.extend(u, fxp.ring), b.extend(u2, fxp.ring)
    head = truncate_to(b, blend(b, [(c4, wide2), (c3, wide)], c2, 2 * fxp.frac, 60.0), fxp.frac)
    (head,) = b.open(head)
    tail = blend(b, [(c1, wide)], c0, 2 * fxp.frac, 20.0)
    p = truncate_to(b, b.add(multiply(b, head, u2, fxp.ring), tail, bound=2.5), fxp.frac)
    # 3
    (p,) = b.open(p)
    return truncate_to(b, multiply(b, p, root, fxp.ring, bound=1.2 / math.sqrt(lo)), fxp.frac)


def newton_reciprocal(b: Builder, v: Wire, hi: float, fxp: FixedPoint, steps: int = 10) -> Wire:
    """[v] narrow, 0 < v <= hi -> [1/v] narrow (CrypTen): y <- y (2 - v y) from y = 3 exp(1 - 2 v) + 0.003.

    The limit in exp (k = 8) holds for v < 256. Raises RangeError beyond.
    """
    if hi > 256:
        raise RangeError(f"CrypTen's reciprocal diverges on values up to {hi:.4g}")
    start = exponential(b, b.affine(v, -2, 1, v.frac), fxp, SQUARINGS)
    y = b.affine(start, 3, 0.003, start.frac, bound=10.0)
    v_open, y_open = b.open(v, y)
    for step in range(steps):
        if step:
            (y_open,) = b.open(y)
        (vy,) = b.open(truncate_to(b, multiply(b, v_open, y_open, fxp.ring, bound=2.5), fxp.frac))
        product = multiply(b, vy, y_open, fxp.ring, bound=10.0)
        y = b.add(b.affine(y, 2, 0, y.frac), minus(b, truncate_to(b, product, fxp.frac)), bound=10.0)
    return y


def newton_rsqrt(b: Builder, v: Wire, hi: float, fxp: FixedPoint, steps: int = 3) -> Wire:
    """[v] narrow, 0 < v <= hi -> [1/sqrt v] narrow (CrypTen): y <- y (3 - v y^2) / 2.

    From y = 2.2 exp(-(v/2 + 0.2)) + 0.2 - v/1024, positive for v < 204. Raises RangeError beyond 200.
    """
    if hi > 200:
        raise RangeError(f"CrypTen's inverse square root diverges on variances up to {hi:.4g}")
    start = exponential(b, b.affine(v, -0.5, -0.2, v.frac + 1), fxp, SQUARINGS)
    line = b.affine(b.retype(v, frac=v.frac + 10, bound=hi / 1024), -1, 0.2, v.frac + 10)
    start = truncate_to(b, b.affine(start, 2.2, 0, start.frac + 10, bound=7.0), fxp.frac)
    y = b.add(start, truncate_to(b, line, fxp.frac), bound=3.0)
    v_open, y_open = b.open(v, y)
    for step in range(steps):
        if step:
            (y_open,) = b.open(y)
        y2 = truncate_to(b, square(b, y_open, fxp.ring, bound=10.0), fxp.frac)
        (y2,) = b.open(y2)
        (vy2,) = b.open(truncate_to(b, multiply(b, v_open, y2, fxp.ring, bound=16.0), fxp.frac))
        half = b.affine(y, 3, 0, y.frac)
        half = b.add(half, minus(b, truncate_to(b, multiply(b, vy2, y_open, fxp.ring), fxp.frac)), bound=10.0)
        y = truncate_to(b, b.retype(half, frac=half.frac + 1, bound=4.0), fxp.frac)
    return y


def deflated_reciprocal(b: Builder, v: Wire, eta: float, fxp: FixedPoint, steps: int = 13) -> Wire:
    """[v] narrow, 0 < v < eta = 2^j -> [1 / v] narrow with j more fraction bits (SecFormer): q = v / eta, p = 1, then
    p <- p (2 - q), q <- q (2 - q): both products share a round. p converges to eta / v.
    """
    j = floor_log2(eta)
    q = truncate_to(b, b.retype(v, frac=v.frac + j, bound=1.0), fxp.frac)
    p, most = b.affine(minus(b, q), 1, 2, q.frac, bound=2.0), 2.0
    (q_open,) = b.open(q)
    q = _goldschmidt_q(b, q, q_open, fxp)
    for step in range(1, steps):
        q_open, p_open = b.open(q, p)
        most = min(2 * most, 8192.0)
        product = truncate_to(b, multiply(b, p_open, q_open, fxp.ring, bound=most), fxp.frac)
        p = b.add(b.affine(p, 2, 0, p.frac, bound=most), minus(b, product), bound=most)
        if step < steps - 1:
            q = _goldschmidt_q(b, q, q_open, fxp)
    return b.retype(p, frac=p.frac + j, bound=p.bound / _power(j))


def _goldschmidt_q(b: Builder, q: Wire, q_open: Wire, fxp: FixedPoint) -> Wire:
    """q (2 - q) = 2 q - q^2."""
    return b.add(b.affine(q, 2, 0, q.frac), minus(b, truncate_to(b, square(b, q_open, fxp.ring), fxp.frac)), bound=1.1)


def deflated_rsqrt(b: Builder, v: Wire, eta: float, fxp: FixedPoint, steps: int = 11) -> Wire:
    """[v] narrow, 0 < v < eta = 4^j -> [1 / sqrt v] narrow (SecFormer): q = v / eta, p = 1, then
    m = (3 - q) / 2, p <- p m, q <- q m^2: two rounds a step. p converges to sqrt(eta / v).
    """
    j = floor_log2(eta)
    q = truncate_to(b, b.retype(v, frac=v.frac + j, bound=1.0), fxp.frac)
    p, most = _rsqrt_factor(b, q, fxp), 1.5
    (m_open, q_open), last = b.open(p, q), steps - 1
    for step in range(1, steps):
        (m2,) = b.open(truncate_to(b, square(b, m_open, fxp.ring), fxp.frac))
        q = truncate_to(b, multiply(b, q_open, m2, fxp.ring, bound=1.1), fxp.frac)
        m = _rsqrt_factor(b, q, fxp)
        m_open, p_open, *rest = b.open(m, p, q) if step < last else b.open(m, p)
        most = min(1.6 * most, 512.0)
        p = truncate_to(b, multiply(b, p_open, m_open, fxp.ring, bound=most), fxp.frac)
        if rest:
            (q_open,) = rest
    return b.retype(p, frac=p.frac + j // 2, bound=p.bound / _power(j // 2))


def _rsqrt_factor(b: Builder, q: Wire, fxp: FixedPoint) -> Wire:
    """(3 - q) / 2."""
    m = b.retype(minus(b, q), frac=q.frac + 1, bound=0.6)
    return truncate_to(b, b.affine(m, 1, 1.5, m.frac, bound=1.6), fxp.frac)

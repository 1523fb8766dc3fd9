"""Products in a larger ring of wires opened on smaller ones: extension and product in one opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Correlations, Masked, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ops.product import broadcast
from ditto.ring import cast, shift_right, signed, unsigned

# An opened x on Z_2^n with |x| < 2^(n-2) is, over the integers (see `Extend`),
#     x = P + K w - r,   P = m' - 2^(n-2),   K = 2^n (1 - msb(m')),   m' = m + 2^(n-2) mod 2^n,   w = msb(r):
# P and K are public, r and w are the dealer's. Any product of such sums is linear in what the dealer can share. What is
# multiplied by K matters on out - n bits alone, and K^2 = 2^n K, w^2 = w.


def _public(masked: Masked, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """P, and the bit K / 2^bits. On bits = out the ring wraps by itself: P = m, K = 0."""
    if bits == out:
        return cast(masked.value, out), torch.zeros_like(masked.value)
    offset = 1 << (bits - 2)
    m = masked.value + offset
    bit = 1 - (shift_right(m, bits - 1, bits) & 1)
    return cast(unsigned(m, bits), out) - offset, cast(bit, out)


def _private(mask: Tensor, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """r as an integer of Z_2^out, and w."""
    r = unsigned(mask, bits)
    return cast(r, out), cast((r >> (bits - 1)) & 1, out)


def _exact(x: Tensor, bits: int, out: int) -> Tensor:
    """What the parties compute for a value outside the bound, too: off by 2^bits, as `Extend`."""
    offset = 1 << (bits - 2)
    return x if bits == out else signed(unsigned(x + offset, bits) - offset, out)


@register
@dataclass(frozen=True)
class WideSquare(Op):
    """Opened x on Z_2^n, |x| < 2^(n-2) -> [x^2] on Z_2^out, out > n. No round beyond the opening of n bits. Exact.

    1. The dealer shares r, r^2 on Z_2^out and w, w r on out - n bits.
    2. [x^2] = P^2 - 2 P [r] + [r^2] + 2 K (P [w] - [w r]) + K^2 [w].
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        y = _exact(x[0], self.bits, self.out)
        return (signed(y * y, self.out),)

    def dealt(self) -> Types:
        whole, rest = Shared(self.shape, self.out), Shared(self.shape, self.out - self.bits)
        return {"r": whole, "rr": whole, "w": rest, "wr": rest}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"r": r, "rr": r * r, "w": w, "wr": w * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        r, rr, w, wr = (cast(k[name], self.out) for name in ("r", "rr", "w", "wr"))
        P, K = _public(x[0], self.bits, self.out)  # K without its power of two
        y = rr - 2 * P * r  # 2
        if p.party == 0:
            y = y + P * P
        y = y + ((2 * K * (P * w - wr)) << self.bits)
        if 2 * self.bits < self.out:
            y = y + ((K * w) << (2 * self.bits))
        return (y,)


@register
@dataclass(frozen=True)
class SumOfSquares(Op):
    """Opened x [..., H] on Z_2^n, |x| < 2^(n-2) -> [sum x^2] over the last dimension, [..., 1] on Z_2^out, out > n.

    No round beyond the opening of n bits. Exact. `WideSquare`, with r^2 summed up by the dealer:
    1. The dealer shares r on Z_2^out, w and w r on out - n bits, and sum r^2, one number a row, on Z_2^out.
    2. [sum x^2] = sum (P^2 - 2 P [r]) + [sum r^2] + sum (2 K (P [w] - [w r]) + K^2 [w]).
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        y = _exact(x[0], self.bits, self.out)
        return (signed((y * y).sum(-1, keepdim=True), self.out),)

    def dealt(self) -> Types:
        rest = Shared(self.shape, self.out - self.bits)
        sums = Shared((*self.shape[:-1], 1), self.out)
        return {"r": Shared(self.shape, self.out), "rr": sums, "w": rest, "wr": rest}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"r": r, "rr": (r * r).sum(-1, keepdim=True, dtype=r.dtype), "w": w, "wr": w * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        r, rr, w, wr = (cast(k[name], self.out) for name in ("r", "rr", "w", "wr"))
        P, K = _public(x[0], self.bits, self.out)  # K without its power of two
        y = (2 * K * (P * w - wr)) << self.bits  # 2
        if p.party == 0:
            y += P * P
        y -= 2 * P * r
        if 2 * self.bits < self.out:
            y += (K * w) << (2 * self.bits)
        return (y.sum(-1, keepdim=True, dtype=y.dtype) + rr,)


@register
@dataclass(frozen=True)
class WideProduct(Op):
    """Opened x on Z_2^n, y on Z_2^k -> [x y] on Z_2^out; n, k <= out, with broadcasting. Exact.

    |x| < 2^(n-2) where n < out, y likewise. No round beyond the openings. x = P + K w - r, y = Q + L v - s.
    1. The dealer shares r s on Z_2^out; where n < out: r on Z_2^out, w and w s on out - n bits; where k < out: s on
       Z_2^out, v and v r on out - k bits; where n + k < out: w v on out - n - k bits.
       For n = out the ring wraps by itself: no w, and the parties have [r] from the opening.
    2. [x y] = P Q - Q [r] - P [s] + [r s],
    3.         + K (Q [w] - [w s]) where n < out,
    4.         + L (P [v] - [v r]) where k < out,
    5.         + K L [w v] where n + k < out.
    """

    shapes: tuple[Shape, Shape]
    bits: tuple[int, int]
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        a, b = (_exact(v, bits, self.out) for v, bits in zip(x, self.bits, strict=True))
        return (signed(a * b, self.out),)

    def dealt(self) -> Types:
        (x, y), both, (n, k), out = self.shapes, broadcast(*self.shapes), self.bits, self.out
        types = {"rs": Shared(both, out)}
        if n < out:
            types |= {"r": Shared(x, out), "w": Shared(x, out - n), "ws": Shared(both, out - n)}
        if k < out:
            types |= {"s": Shared(y, out), "v": Shared(y, out - k), "vr": Shared(both, out - k)}
        if n + k < out:
            types |= {"wv": Shared(both, out - n - k)}
        return types

    def correlate(self, *masks: Tensor) -> Correlations:
        (n, k), out = self.bits, self.out
        (r, w), (s, v) = _private(masks[0], n, out), _private(masks[1], k, out)
        values = {"rs": r * s}  # 1
        if n < out:
            values |= {"r": r, "w": w, "ws": w * s}
        if k < out:
            values |= {"s": s, "v": v, "vr": v * r}
        if n + k < out:
            values |= {"wv": w * v}
        return values

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        (x_bits, y_bits), out = self.bits, self.out
        (P, K), (Q, L) = _public(x[0], x_bits, out), _public(x[1], y_bits, out)  # K, L without their powers of two
        dealt = {name: cast(share, out) for name, share in k.items()}
        r = dealt["r"] if x_bits < out else cast(x[0].mask, out)
        s = dealt["s"] if y_bits < out else cast(x[1].mask, out)
        y = dealt["rs"] - Q * r - P * s  # 2
        if p.party == 0:
            y = y + P * Q
        if x_bits < out:  # 3
            y = y + ((K * (Q * dealt["w"] - dealt["ws"])) << x_bits)
        if y_bits < out:  # 4
            y = y + ((L * (P * dealt["v"] - dealt["vr"])) << y_bits)
        if x_bits + y_bits < out:  # 5
            y = y + ((K * L * dealt["wv"]) << (x_bits + y_bits))
        return (y,)

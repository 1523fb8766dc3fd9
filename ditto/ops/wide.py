"""Products in a larger ring of wires opened on smaller ones: extension and product in one opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Correlations, Masked, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ops.extend import opened_integer
from ditto.ops.product import broadcast
from ditto.ring import cast, signed, unsigned

# An opened x on Z_2^n with |x| < 2^(n-2) is, over the integers (see `Extend`),
#     x = P + K w - r,   P = m' - 2^(n-2),   K = 2^n (1 - msb(m')),   m' = m + 2^(n-2) mod 2^n,   w = msb(r):
# P and K are public, r and w are the dealer's. Any product of such sums is linear in what the dealer can share. What is
# multiplied by K matters on out - n bits alone, and K^2 = 2^n K, w^2 = w.


def _public(value: Tensor, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """P, and the bit K / 2^bits, from m. On bits = out the ring wraps by itself: P = m, K = 0."""
    if bits == out:
        return cast(value, out), torch.zeros_like(value)
    return opened_integer(value, bits, out)


def _private(mask: Tensor, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """r as an integer of Z_2^out, and w."""
    r = unsigned(mask, bits)
    return cast(r, out), cast((r >> (bits - 1)) & 1, out)


def _exact(x: Tensor, bits: int, out: int) -> Tensor:
    """What the parties compute for a value outside the bound, too: off by 2^bits, as `Extend`."""
    offset = 1 << (bits - 2)
    return x if bits == out else signed(unsigned(x + offset, bits) - offset, out)


@dataclass
class Widened(Masked):
    """An opened wire with this party's shares of its mask r as an integer, and of r's top bit w."""

    r: Tensor
    w: Tensor


@register
@dataclass(frozen=True)
class Widen(Op):
    """Opened x on Z_2^n, |x| < 2^(n-2) -> the same with [r], [w] for several products on up to `out` > n bits. Exact.

    1. The dealer shares r on Z_2^out and w on out - n bits, as for a single product; whoever reads the result is dealt
       products of r and w only.
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return x

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return x

    def dealt(self) -> Types:
        return {"r": Shared(self.shape, self.out), "w": Shared(self.shape, self.out - self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"r": r, "w": w}  # 1

    def output_masks(self, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return masks

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        return (Widened(x[0].value, x[0].mask, k["r"], k["w"]),)


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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * x[0],)

    def dealt(self) -> Types:
        whole, rest = Shared(self.shape, self.out), Shared(self.shape, self.out - self.bits)
        return {"r": whole, "rr": whole, "w": rest, "wr": rest}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"r": r, "rr": r * r, "w": w, "wr": w * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        r, rr, w, wr = (cast(k[name], self.out) for name in ("r", "rr", "w", "wr"))
        P, K = _public(x[0].value, self.bits, self.out)  # K without its power of two
        y = rr - 2 * P * r  # 2
        if p.party == 0:
            y = y + P * P
        y = y + ((2 * cast(K, self.out) * (P * w - wr)) << self.bits)
        if 2 * self.bits < self.out:
            y = y + ((cast(K, self.out) * w) << (2 * self.bits))
        return (y,)


@register
@dataclass(frozen=True)
class SumOfSquares(Op):
    """Widened x [..., H] on Z_2^n, |x| < 2^(n-2) -> [sum x^2] over the last dimension, [..., 1] on Z_2^out, out > n.

    No round beyond the opening of n bits. Exact. `WideSquare` with r^2 summed up by the dealer, and r, w by `Widen`:
    1. The dealer shares w r on out - n bits, and sum r^2, one number a row, on Z_2^out.
    2. [sum x^2] = sum (P^2 - 2 P [r]) + [sum r^2] + sum (2 K (P [w] - [w r]) + K^2 [w]).
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        y = _exact(x[0], self.bits, self.out)
        return (signed((y * y).sum(-1, keepdim=True), self.out),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return ((x[0] * x[0]).sum(-1, keepdim=True),)

    def dealt(self) -> Types:
        sums = Shared((*self.shape[:-1], 1), self.out)
        return {"rr": sums, "wr": Shared(self.shape, self.out - self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"rr": (r * r).sum(-1, keepdim=True, dtype=r.dtype), "wr": w * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        P, K = _public(x[0].value, self.bits, self.out)  # K without its power of two
        whole = P - (x[0].r << 1) if p.party == 0 else x[0].r * -2  # 2
        y = cast(whole, self.out).mul_(P).sum(-1, keepdim=True, dtype=k["rr"].dtype)
        # on the bits that K leaves of the ring
        rest = self.out - self.bits
        w = cast(x[0].w, rest)
        times_k = (w * cast(P, rest)).sub_(k["wr"]).bitwise_left_shift_(1)
        if 2 * self.bits < self.out:
            times_k += w << self.bits
        sums = times_k.mul_(cast(K, rest)).sum(-1, keepdim=True, dtype=times_k.dtype)
        return (y.add_(k["rr"]).add_(cast(sums, self.out) << self.bits),)


@register
@dataclass(frozen=True)
class WideProduct(Op):
    """Opened x on Z_2^n, y on Z_2^k -> [x y] on Z_2^out; n, k <= out, with broadcasting. Exact.

    |x| < 2^(n-2) where n < out, y likewise. No round beyond the openings. x = P + K w - r, y = Q + L v - s.
    1. The dealer shares r s on Z_2^out; where n < out: r on Z_2^out, w and w s on out - n bits; where k < out: s on
       Z_2^out, v and v r on out - k bits; where n + k < out: w v on out - n - k bits. Of a `widened` x it shared r and
       w before. For n = out the ring wraps by itself: no w, and the parties have [r] from the opening.
    2. [x y] = P Q - Q [r] - P [s] + [r s],
    3.         + K (Q [w] - [w s]) where n < out,
    4.         + L (P [v] - [v r]) where k < out,
    5.         + K L [w v] where n + k < out.
    """

    shapes: tuple[Shape, Shape]
    bits: tuple[int, int]
    out: int
    widened: bool = False

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        a, b = (_exact(v, bits, self.out) for v, bits in zip(x, self.bits, strict=True))
        return (signed(a * b, self.out),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * x[1],)

    def dealt(self) -> Types:
        (x, y), both, (n, k), out = self.shapes, broadcast(*self.shapes), self.bits, self.out
        types = {"rs": Shared(both, out)}
        if n < out:
            types |= {} if self.widened else {"r": Shared(x, out), "w": Shared(x, out - n)}
            types |= {"ws": Shared(both, out - n)}
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
            values |= {} if self.widened else {"r": r, "w": w}
            values |= {"ws": w * s}
        if k < out:
            values |= {"s": s, "v": v, "vr": v * r}
        if n + k < out:
            values |= {"wv": w * v}
        return values

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        (x_bits, y_bits), out = self.bits, self.out
        (P, K), (Q, L) = (_public(a.value, bits, out) for a, bits in zip(x, self.bits, strict=True))  # without powers
        r = x[0].r if self.widened else k.get("r", x[0].mask)
        s = cast(k.get("s", x[1].mask), out)
        # what P is multiplied with is as small as y
        if p.party == 0:
            s = s - Q
        if y_bits < out:  # 4
            s = s - ((cast(k["v"], out) * cast(L, out)) << y_bits)
        y = k["rs"] - cast(r, out) * Q  # 2
        y -= P * s
        # on the bits that L and K leave of the ring
        if y_bits < out:
            y -= cast(k["vr"] * L.to(k["vr"].dtype), out).bitwise_left_shift_(y_bits)
        if x_bits < out:  # 3
            rest = out - x_bits
            w = x[0].w if self.widened else k["w"]
            times_k = cast(w, rest) * cast(Q, rest) - k["ws"]
            if x_bits + y_bits < out:  # 5
                times_k += (cast(k["wv"], rest) * cast(L, rest)) << y_bits
            y += cast(times_k.mul_(cast(K, rest)), out).bitwise_left_shift_(x_bits)
        return (y,)

"""Products in a larger ring of wires opened on smaller ones: extension and product in one opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Correlations, Masked, Op, Party, Shape, Shared, Tensor, Types, blocks, register
from ditto.ops.product import broadcast
from ditto.ring import cast, shift_right, signed, unsigned

# An opened x on Z_2^n with |x| < 2^(n-2) is, over the integers (see `Extend`),
#     x = P + K w - r,   P = m' - 2^(n-2),   K = 2^n (1 - msb(m')),   m' = m + 2^(n-2) mod 2^n,   w = msb(r):
# P and K are public, r and w are the dealer's. Any product of such sums is linear in what the dealer can share. What is
# multiplied by K matters on out - n bits alone, and K^2 = 2^n K, w^2 = w.


def _public(value: Tensor, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """P, and the bit K / 2^bits, from m. On bits = out the ring wraps by itself: P = m, K = 0."""
    if bits == out:
        return cast(value, out), torch.zeros_like(value)
    offset = 1 << (bits - 2)
    m = value + offset
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
        y = y + ((2 * K * (P * w - wr)) << self.bits)
        if 2 * self.bits < self.out:
            y = y + ((K * w) << (2 * self.bits))
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

    def dealt(self) -> Types:
        sums = Shared((*self.shape[:-1], 1), self.out)
        return {"rr": sums, "wr": Shared(self.shape, self.out - self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r, w = _private(masks[0], self.bits, self.out)
        return {"rr": (r * r).sum(-1, keepdim=True, dtype=r.dtype), "wr": w * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = torch.empty_like(k["rr"])
        for part in blocks(self.shape):
            part(y).copy_(self._sums(p.party, part(x[0].value), part(x[0].r), part(x[0].w), part(k["wr"])))
        return (y.add_(k["rr"]),)

    def _sums(self, party: int, value: Tensor, *shares: Tensor) -> Tensor:
        r, w, wr = (cast(share, self.out) for share in shares)
        P, K = _public(value, self.bits, self.out)  # K without its power of two
        y = (P * w - wr).mul_(K).bitwise_left_shift_(self.bits + 1)  # 2
        if 2 * self.bits < self.out:
            y += (K * w) << (2 * self.bits)
        y -= (2 * P).mul_(r)
        if party == 0:
            y += P.mul_(P)
        return y.sum(-1, keepdim=True, dtype=y.dtype)


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
        shares = dict(k)
        if self.widened:
            shares |= {"r": x[0].r, "w": x[0].w}
        shares.setdefault("r", x[0].mask)
        shares.setdefault("s", x[1].mask)
        y = torch.empty_like(k["rs"])
        for part in blocks(tuple(y.shape)):
            some = {name: cast(part(share), self.out) for name, share in shares.items()}
            public = (_public(part(w.value), bits, self.out) for w, bits in zip(x, self.bits, strict=True))
            part(y).copy_(self._product(p.party, some, *public))
        return (y,)

    def _product(
        self, party: int, dealt: Correlations, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]
    ) -> Tensor:
        (x_bits, y_bits), out, (P, K), (Q, L) = self.bits, self.out, left, right  # K, L without their powers of two
        s = dealt["s"] - Q if party == 0 else dealt["s"]
        y = dealt["rs"] - Q * dealt["r"]  # 2
        y -= P * s
        if x_bits < out:  # 3
            y += (Q * dealt["w"]).sub_(dealt["ws"]).mul_(K).bitwise_left_shift_(x_bits)
        if y_bits < out:  # 4
            y += (P * dealt["v"]).sub_(dealt["vr"]).mul_(L).bitwise_left_shift_(y_bits)
        if x_bits + y_bits < out:  # 5
            y += (K * L).mul_(dealt["wv"]).bitwise_left_shift_(x_bits + y_bits)
        return y

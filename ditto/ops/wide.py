"""Products in a larger ring of wires opened on smaller ones: extension and product in one opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Cost, Dealer, Masked, Op, Party, Shape, Tensor, need, packed_bytes, register
from ditto.ops.product import broadcast
from ditto.ring import cast, shift_right, signed, unsigned

# An opened x on Z_2^n with |x| < 2^(n-2) is, over the integers (see `Extend`),
#     x = P + K w - r,   P = m' - 2^(n-2),   K = 2^n (1 - msb(m')),   m' = m + 2^(n-2) mod 2^n,   w = msb(r):
# P and K are public, r and w are the dealer's. Any product of such sums is linear in what the dealer can share.


def _public(masked: Masked, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """P and the bit 1 - msb(m'), so that K is that bit times 2^bits (nothing when bits = out)."""
    if bits == out:
        return cast(masked.value, out), torch.zeros_like(masked.value)
    offset = 1 << (bits - 2)
    m = masked.value + offset
    keep = 1 - (shift_right(m, bits - 1, bits) & 1)
    return cast(unsigned(m, bits), out) - offset, cast(keep, out)


def _private(mask: Tensor | None, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """r as an integer of Z_2^out, and w."""
    r = unsigned(need(mask), bits)
    return cast(r, out), cast((r >> (bits - 1)) & 1, out)


def _exact(x: Tensor, bits: int, out: int) -> Tensor:
    """What the parties compute for a value outside the bound, too: off by 2^bits, as `Extend`."""
    offset = 1 << (bits - 2)
    return x if bits == out else signed(unsigned(x + offset, bits) - offset, out)


@register
@dataclass(frozen=True)
class WideSquare(Op):
    """Opened x on Z_2^n, |x| < 2^(n-2) -> [x^2] on Z_2^out, out > n. No round beyond the opening of n bits. Exact.

    x^2 = P^2 + 2 P K w + K^2 w - 2 P r - 2 K w r + r^2.
    The dealer shares r, r^2 on Z_2^out and w, w r on the out - n bits that K leaves of them.
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        y = _exact(x[0], self.bits, self.out)
        return (signed(y * y, self.out),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        r, w = _private(masks[0], self.bits, self.out)
        d.share(r, self.out)
        d.share(r * r, self.out)
        d.share(w, self.out - self.bits)
        d.share(w * r, self.out - self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        rings = (self.out, self.out, self.out - self.bits, self.out - self.bits)
        return [p.dealt(self.shape, bits) for bits in rings]

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        r, rr, w, wr = (cast(part, self.out) for part in k)
        public, keep = _public(x[0], self.bits, self.out)
        wrap = (keep * (2 * (public * w - wr))) << self.bits
        if 2 * self.bits < self.out:
            wrap = wrap + ((keep * w) << (2 * self.bits))
        y = rr - 2 * public * r + wrap
        return (y + public * public if p.party == 0 else y,)

    def cost(self) -> Cost:
        one, rest = packed_bytes(self.shape, self.out), packed_bytes(self.shape, self.out - self.bits)
        return Cost(0, 0, 2 * one + 2 * rest)


@register
@dataclass(frozen=True)
class WideProduct(Op):
    """Opened x on Z_2^n, y on Z_2^k -> [x y] on Z_2^out; n, k <= out, with broadcasting. Exact.

    |x| < 2^(n-2) where n < out, y likewise. No round beyond the openings.
    x y = (P + K w - r)(Q + L v - s): the dealer shares r, s, r s on Z_2^out; w, w s on out - n bits; v, v r on
    out - k bits; w v where n + k < out. For n = out there is no w (the ring wraps by itself), and r is the mask.
    """

    shapes: tuple[Shape, Shape]
    bits: tuple[int, int]
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        a, b = (_exact(v, bits, self.out) for v, bits in zip(x, self.bits, strict=True))
        return (signed(a * b, self.out),)

    def _dealt(self) -> list[tuple[Shape, int]]:
        """Shapes and rings of what is dealt, in order: rs, then r, w, ws, then s, v, vr, then wv."""
        both = broadcast(*self.shapes)
        parts = [(both, self.out)]
        for shape, bits in zip(self.shapes, self.bits, strict=True):
            if bits < self.out:
                parts += [(shape, self.out), (shape, self.out - bits), (both, self.out - bits)]
        if self.bits[0] + self.bits[1] < self.out:
            parts.append((both, self.out - self.bits[0] - self.bits[1]))
        return parts

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        (r, w), (s, v) = (_private(mask, bits, self.out) for mask, bits in zip(masks, self.bits, strict=True))
        parts = [r * s]
        for mine, wrap, other, bits in ((r, w, s, self.bits[0]), (s, v, r, self.bits[1])):
            if bits < self.out:
                parts += [mine, wrap, wrap * other]
        if self.bits[0] + self.bits[1] < self.out:
            parts.append(w * v)
        for part, (_, bits) in zip(parts, self._dealt(), strict=True):
            d.share(part, bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return [p.dealt(shape, bits) for shape, bits in self._dealt()]

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        parts = iter([cast(part, self.out) for part in k])
        y = next(parts)
        public = [_public(masked, bits, self.out) for masked, bits in zip(x, self.bits, strict=True)]
        for mine, other, bits in ((0, 1, self.bits[0]), (1, 0, self.bits[1])):
            theirs, keep = public[other][0], public[mine][1]
            if bits == self.out:
                y = y - theirs * cast(x[mine].mask, self.out)
                continue
            r, w, ws = next(parts), next(parts), next(parts)
            y = y - theirs * r + ((keep * (theirs * w - ws)) << bits)
        if self.bits[0] + self.bits[1] < self.out:
            y = y + ((public[0][1] * public[1][1] * next(parts)) << (self.bits[0] + self.bits[1]))
        return (y + public[0][0] * public[1][0] if p.party == 0 else y,)

    def cost(self) -> Cost:
        return Cost(0, 0, sum(packed_bytes(shape, bits) for shape, bits in self._dealt()))

"""What a compared bit is good for: a share of it, and a choice between values, without a further round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Cost, Dealer, Op, Party, Shape, Tensor, need, packed_bytes, register
from ditto.ops.product import broadcast
from ditto.ring import cast, signed


@register
@dataclass(frozen=True)
class B2A(Op):
    """An opened bit b = c + s mod 2 -> [b] on Z_2^l: c + (1 - 2 c) [s]. The dealer shares s. No round; exact."""

    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0], self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        d.share(cast(need(masks[0]), self.bits), self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return p.dealt(self.shape, self.bits)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        c = cast(x[0], self.bits)
        y = (1 - 2 * c) * k
        return (y + c if p.party == 0 else y,)

    def cost(self) -> Cost:
        return Cost(0, 0, packed_bytes(self.shape, self.bits))


@register
@dataclass(frozen=True)
class Mux(Op):
    """An opened bit b = c + s mod 2 and an opened x = m - r in Z_2^l -> [b x], with broadcasting. Exact.

    b x = (c + (1 - 2 c) s)(m - r) = c m - c r + (1 - 2 c)(m s - s r).
    1. The dealer shares s and s r.  2. The parties weigh the shares with public c and m. No round.
    """

    bit: Shape
    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] * x[1], self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        s, r = (cast(need(mask), self.bits) for mask in masks)
        d.share(s, self.bits)
        d.share(s * r, self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return p.dealt(self.bit, self.bits), p.dealt(broadcast(self.bit, self.shape), self.bits)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        s, product = k
        c, m = cast(x[0], self.bits), cast(x[1].value, self.bits)
        r = cast(x[1].mask, self.bits)
        y = (1 - 2 * c) * (m * s - product)
        return (y + c * (m - r) if p.party == 0 else y - c * r,)

    def cost(self) -> Cost:
        shape = broadcast(self.bit, self.shape)
        return Cost(0, 0, packed_bytes(self.bit, self.bits) + packed_bytes(shape, self.bits))

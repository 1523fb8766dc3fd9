"""What a compared bit is good for: a share of it, and a choice between values, without a further round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
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

    def dealt(self) -> Types:
        return {"s": Shared(self.shape, self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        return {"s": cast(masks[0], self.bits)}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        c = cast(x[0], self.bits)
        y = (1 - 2 * c) * k["s"]
        return (y + c if p.party == 0 else y,)


@register
@dataclass(frozen=True)
class Mux(Op):
    """An opened bit b = c + s mod 2 and an opened x = m - r in Z_2^l -> [b x], with broadcasting. Exact.

    b x = (c + (1 - 2 c) s)(m - r) = c m - c r + (1 - 2 c)(m s - s r).
    1. The dealer shares s and s r.
    2. The parties weigh the shares with public c and m. No round.
    """

    bit: Shape
    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] * x[1], self.bits),)

    def dealt(self) -> Types:
        return {"s": Shared(self.bit, self.bits), "sr": Shared(broadcast(self.bit, self.shape), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        s, r = (cast(mask, self.bits) for mask in masks)
        return {"s": s, "sr": s * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        c, m, r = (cast(a, self.bits) for a in (x[0], x[1].value, x[1].mask))
        y = (1 - 2 * c) * (m * k["s"] - k["sr"])  # 2
        return (y + c * (m - r) if p.party == 0 else y - c * r,)

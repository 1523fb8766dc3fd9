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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0].detach() * x[1],)

    def dealt(self) -> Types:
        return {"s": Shared(self.bit, self.bits), "sr": Shared(broadcast(self.bit, self.shape), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        s, r = (cast(mask, self.bits) for mask in masks)
        return {"s": s, "sr": s * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        c, m, r = (cast(a, self.bits) for a in (x[0], x[1].value, x[1].mask))
        y = (1 - 2 * c) * (m * k["s"] - k["sr"])  # 2
        return (y + c * (m - r) if p.party == 0 else y - c * r,)


@register
@dataclass(frozen=True)
class Mux2(Op):
    """Two opened bits a = c + s, b = d + t mod 2 and an opened x = m - r in Z_2^l, all of one shape -> [a b x]. Exact.

    Over the integers a = c + e s with e = 1 - 2 c, b = d + f t with f = 1 - 2 d.
    1. The dealer shares s, t, s t and r times each.
    2. [a b] = c d + c f [t] + d e [s] + e f [s t], [a b r] likewise; [a b x] = m [a b] - [a b r]. No round.
    """

    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] * x[1] * x[2], self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0].detach() * x[1].detach() * x[2],)

    def dealt(self) -> Types:
        return {name: Shared(self.shape, self.bits) for name in ("s", "t", "st", "sr", "tr", "str")}

    def correlate(self, *masks: Tensor) -> Correlations:
        s, t, r = (cast(mask, self.bits) for mask in masks)
        return {"s": s, "t": t, "st": s * t, "sr": s * r, "tr": t * r, "str": s * t * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        c, d, m, r = (cast(a, self.bits) for a in (x[0], x[1], x[2].value, x[2].mask))
        e, f = 1 - 2 * c, 1 - 2 * d

        def both(s: Tensor, t: Tensor, st: Tensor) -> Tensor:
            return c * f * t + d * e * s + e * f * st

        y = m * both(k["s"], k["t"], k["st"]) - both(k["sr"], k["tr"], k["str"])  # 2
        return (y + c * d * (m - r) if p.party == 0 else y - c * d * r,)

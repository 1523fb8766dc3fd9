"""What a compared bit is good for: a share of it, and a choice between values, without a further round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

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
class MuxAll(Op):
    """Opened bits b_1 ... b_k, b_i = c_i + s_i mod 2, and an opened x = m - r in Z_2^l, all of one shape ->
    [b_1 ... b_k x]. Exact.

    Over the integers b_i = c_i + e_i s_i with e_i = 1 - 2 c_i.
    1. The dealer shares the product of the s_i of every set of bits but the empty one, and r times each.
    2. [b_1 ... b_k] = the sum over all sets of the e_i in it times the c_i that are not times [its product], [b_1 ...
       b_k r] likewise; [b_1 ... b_k x] = m [b_1 ... b_k] - [b_1 ... b_k r]. No round.
    """

    shape: Shape
    bits: int
    count: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(math.prod(x[1:], start=x[0]), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (math.prod((bit.detach() for bit in x[:-1]), start=x[-1]),)

    def dealt(self) -> Types:
        sets = Shared(((1 << self.count) - 1, *self.shape), self.bits)
        return {"s": sets, "sr": sets}

    def correlate(self, *masks: Tensor) -> Correlations:
        *bits, r = (cast(mask, self.bits) for mask in masks)
        products = [torch.ones_like(r)]
        for s in bits:  # each set without this bit, then with it
            products += [product * s for product in products]
        s = torch.stack(products[1:])
        return {"s": s, "sr": s * r}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        *bits, m, r = (cast(a, self.bits) for a in (*x[:-1], x[-1].value, x[-1].mask))
        public = [torch.ones_like(m)]
        for c in bits:
            public = [w * c for w in public] + [w * (1 - 2 * c) for w in public]
        all_open, *weights = public  # of the empty set: all bits' c
        y = sum(w * (m * s - sr) for w, s, sr in zip(weights, k["s"], k["sr"], strict=True))  # 2
        return (y + all_open * (m - r) if p.party == 0 else y - all_open * r,)

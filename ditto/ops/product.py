"""Products of opened wires: squares, Beaver products, three factors at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ditto.ops.base import Cost, Dealer, Op, Party, Shape, Tensor, need, packed_bytes, register
from ditto.ring import cast, signed


def broadcast(*shapes: Shape) -> Shape:
    """The shape that operands of these shapes broadcast to."""
    return tuple(np.broadcast_shapes(*shapes))


@register
@dataclass(frozen=True)
class Square(Op):
    """Opened x = m - r -> [x^2] = m^2 - 2 m [r] + [r^2]. No round beyond the opening; exact. (Beaver 1991.)"""

    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] * x[0], self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        r = cast(need(masks[0]), self.bits)
        d.share(r * r, self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return p.dealt(self.shape, self.bits)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        m = cast(x[0].value, self.bits)
        y = k - 2 * m * cast(x[0].mask, self.bits)
        return (y + m * m if p.party == 0 else y,)

    def cost(self) -> Cost:
        return Cost(0, 0, packed_bytes(self.shape, self.bits))


@register
@dataclass(frozen=True)
class Product(Op):
    """Opened x = m - a, y = n - b -> [xy] = mn - m [b] - n [a] + [ab], with broadcasting.

    The ring is the smaller of the operands'. No round beyond the openings; exact. (Beaver 1991.)
    """

    shapes: tuple[Shape, Shape]
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] * x[1], self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b = (cast(need(r), self.bits) for r in masks)
        d.share(a * b, self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return p.dealt(broadcast(*self.shapes), self.bits)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        m, n = (cast(w.value, self.bits) for w in x)
        a, b = (cast(w.mask, self.bits) for w in x)
        y = k - m * (b - n if p.party == 0 else b) - n * a
        return (y,)

    def cost(self) -> Cost:
        return Cost(0, 0, packed_bytes(broadcast(*self.shapes), self.bits))


@register
@dataclass(frozen=True)
class Product3(Op):
    """Opened x = m - a, y = n - b, z = q - c -> [xyz] in no further round, with broadcasting. Exact.

    xyz = mnq - mn c - mq b - nq a + m bc + n ac + q ab - abc.
    1. The dealer shares the products of masks bc, ac, ab (each of its own broadcast shape) and abc.
    2. The parties weigh them with the public masked values.
    """

    shapes: tuple[Shape, Shape, Shape]
    bits: int

    def _dealt(self) -> tuple[Shape, ...]:
        x, y, z = self.shapes
        return broadcast(y, z), broadcast(x, z), broadcast(x, y), broadcast(x, y, z)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(signed(x[0] * x[1], self.bits) * x[2], self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, c = (cast(need(r), self.bits) for r in masks)
        for product in (b * c, a * c, a * b, a * b * c):
            d.share(product, self.bits)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return [p.dealt(shape, self.bits) for shape in self._dealt()]

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        m, n, q = (cast(w.value, self.bits) for w in x)
        a, b, c = (cast(w.mask, self.bits) for w in x)
        bc, ac, ab, abc = k
        if p.party == 0:
            c = c - q
        y = m * (bc - n * c - q * b) + n * (ac - q * a) + q * ab - abc
        return (y,)

    def cost(self) -> Cost:
        return Cost(0, 0, sum(packed_bytes(shape, self.bits) for shape in self._dealt()))

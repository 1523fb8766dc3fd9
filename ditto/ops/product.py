"""Products of opened wires: squares, Beaver products, three factors at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * x[0],)

    def dealt(self) -> Types:
        return {"rr": Shared(self.shape, self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = cast(masks[0], self.bits)
        return {"rr": r * r}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m = cast(x[0].value, self.bits)
        y = k["rr"] - 2 * m * cast(x[0].mask, self.bits)
        return (y + m * m if p.party == 0 else y,)


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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * x[1],)

    def dealt(self) -> Types:
        return {"ab": Shared(broadcast(*self.shapes), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        a, b = (cast(mask, self.bits) for mask in masks)
        return {"ab": a * b}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m, n = (cast(w.value, self.bits) for w in x)
        a, b = (cast(w.mask, self.bits) for w in x)
        y = k["ab"] - m * (b - n if p.party == 0 else b) - n * a
        return (y,)


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

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(signed(x[0] * x[1], self.bits) * x[2], self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * x[1] * x[2],)

    def dealt(self) -> Types:
        x, y, z = self.shapes
        shapes = {"bc": broadcast(y, z), "ac": broadcast(x, z), "ab": broadcast(x, y), "abc": broadcast(x, y, z)}
        return {name: Shared(shape, self.bits) for name, shape in shapes.items()}

    def correlate(self, *masks: Tensor) -> Correlations:
        a, b, c = (cast(mask, self.bits) for mask in masks)
        return {"bc": b * c, "ac": a * c, "ab": a * b, "abc": a * b * c}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m, n, q = (cast(w.value, self.bits) for w in x)
        a, b, c = (cast(w.mask, self.bits) for w in x)
        if p.party == 0:
            c = c - q
        y = m * (k["bc"] - n * c - q * b) + n * (k["ac"] - q * a) + q * k["ab"] - k["abc"]  # 2
        return (y,)

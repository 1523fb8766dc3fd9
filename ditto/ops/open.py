"""Open wires under masks: one round for any number of wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Cost, Dealer, Masked, Op, Party, Shape, Tensor, packed_bytes, register


@register
@dataclass(frozen=True)
class Open(Op):
    """[x] -> public m = x + r mod 2^l, where the dealer knows r and nobody else does.

    1. Each party expands its share [r]_i from its seed (no dealer bytes).
    2. Each sends [x]_i + [r]_i; both add up. One round, ceil(l/8) bytes an element each way.
    All wires of one Open share the round. Exact. Reveals only m, which is uniform. (Beaver 1991.)
    """

    wires: tuple[tuple[Shape, int], ...]  # (shape, ring bits) of each wire

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return x

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(d.mask(shape, bits) for shape, bits in self.wires)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return [p.mask(shape, bits) for shape, bits in self.wires]

    def prepared_masks(self, k: Any, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(k)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        opened = p.open([a + r for a, r in zip(x, k, strict=True)], [bits for _, bits in self.wires])
        return tuple(Masked(m, r) for m, r in zip(opened, k, strict=True))

    def cost(self) -> Cost:
        return Cost(1, sum(packed_bytes(shape, bits) for shape, bits in self.wires), 0)

"""Open wires under masks: one round for any number of wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register


@register
@dataclass(frozen=True)
class Open(Op):
    """[x] -> public m = x + r mod 2^l, where the dealer knows r and nobody else does.

    1. Each party expands its share [r]_i from its seed (no dealer bytes).
    2. Each sends [x]_i + [r]_i; both add up. One round, l/8 bytes an element each way.
    All wires of one Open share the round. Exact. Reveals only m, which is uniform. (Beaver 1991.)
    """

    wires: tuple[tuple[Shape, int], ...]  # (shape, ring bits) of each wire

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return x

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return x

    def opens(self) -> tuple[Types, ...]:
        return ({f"r{i}": Shared(shape, bits) for i, (shape, bits) in enumerate(self.wires)},)

    def output_masks(self, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return masks[len(self.wires) :]  # behind those of the inputs, which are not opened

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        masks = list(k.values())  # 1
        return tuple(p.open([*x], masks, [bits for _, bits in self.wires], [])[0])  # 2

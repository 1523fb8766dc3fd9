"""Operations that open bits in rounds of their own, taken apart so that others share those rounds.

`Begin` is what such an operation does before its first round, with all that is dealt for it; a `Together` is one round:
of openings, and of such operations, each at its own. The scheduling pass makes them; they deal, open and compute what
the whole operation does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ditto.ops.base import BitRounds, Correlations, Op, Party, Running, Shape, Shared, Tensor, Types


@dataclass(frozen=True)
class Begin(Op):
    """Inputs of `op` -> the operation before its first round. Its mask, for the dealer, is that of the output."""

    op: BitRounds

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return self.op.plain(*x)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return self.op.smooth(*x)

    @cached_property
    def _masks(self) -> Types:
        """Drawn here, opened later."""
        return self.op._masks

    def dealt(self) -> Types:
        return self.op.dealt()

    def correlate(self, *masks: Tensor) -> Correlations:
        return self.op.correlate(*masks)

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return self.op.dealer_masks(*masks)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        return (Running(self.op.rounds(p.party, k, *x)),)


@dataclass(frozen=True)
class Together(Op):
    """One round: `wires` as `Open` has them, then operations under way, each with the number of its round.

    After its last round an operation's wire is its output.
    """

    wires: tuple[tuple[Shape, int], ...]
    under_way: tuple[tuple[BitRounds, int], ...]

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return x

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return x

    def opens(self) -> tuple[Types, ...]:
        bits = {f"bits {i}": of for i, (op, n) in enumerate(self.under_way) for of in op.opens()[n].values()}
        return (self._masks | bits,)

    @cached_property
    def _masks(self) -> Types:
        """Of the wires alone: the others drew theirs when they began."""
        return {f"r{i}": Shared(shape, bits) for i, (shape, bits) in enumerate(self.wires)}

    def output_masks(self, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        read = len(self.wires) + len(self.under_way)
        return (*masks[read:], *masks[len(self.wires) : read])

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        masks, count = list(k.values()), len(self.wires)
        running = x[count:]
        sizes, words = [size for _, size in self.wires], [op.words for op in running]
        opened, bits = p.open([*x[:count]], masks, sizes, words)
        return (*opened, *(output for op, found in zip(running, bits, strict=True) for output in op.take(found)))

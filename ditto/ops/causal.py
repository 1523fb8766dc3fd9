"""What causal attention needs: caches that grow, and only the scores that count. Local; exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Correlations, Op, Party, Rearrangement, Shape, Tensor, register
from ditto.ops.local import wrap
from ditto.ring import cast, signed


@register
@dataclass(frozen=True)
class Join(Rearrangement):
    """Wires of one ring, one after another along a dimension: all opened, or none."""

    bits: int
    dim: int

    def move(self, *x: Tensor) -> Tensor:
        return torch.cat([cast(a, self.bits) for a in x], self.dim)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat(x, self.dim),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (torch.cat(x, self.dim),)


def _triangle(n: int) -> Tensor:
    """Flat positions (row n + column) of the entries with column <= row."""
    rows, columns = torch.tril_indices(n, n).unbind()
    return rows * n + columns


@register
@dataclass(frozen=True)
class Triangle(Rearrangement):
    """[..., n, n] -> [..., n (n + 1) / 2]: the entries with column <= row, row by row."""

    n: int

    def move(self, *x: Tensor) -> Tensor:
        return x[0].reshape(*x[0].shape[:-2], self.n * self.n).index_select(-1, _triangle(self.n).to(x[0].device))


@register
@dataclass(frozen=True)
class Untriangle(Rearrangement):
    """The way back, with zeros elsewhere: [..., n (n + 1) / 2, *rest] -> [..., n, n, *rest]."""

    n: int
    rest: Shape = ()

    def move(self, *x: Tensor) -> Tensor:
        at = x[0].dim() - 1 - len(self.rest)
        lead = x[0].shape[:at]
        full = x[0].new_zeros(*lead, self.n * self.n, *self.rest)
        full.index_copy_(at, _triangle(self.n).to(x[0].device), x[0])
        return full.reshape(*lead, self.n, self.n, *self.rest)


@register
@dataclass(frozen=True)
class CausalMask(Op):
    """[..., n, n] -> the same with a public integer added where column > row (by party 0)."""

    n: int
    bits: int
    value: int

    def _added(self, x: Tensor) -> Tensor:
        return torch.full((self.n, self.n), wrap(self.value, self.bits), dtype=x.dtype, device=x.device).triu(1)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] + self._added(x[0]), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] + self._added(x[0]),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0], self.bits)
        return (y + self._added(y) if p.party == 0 else y,)

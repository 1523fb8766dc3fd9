"""Tables on few bits: a rotated table, and the one-hot vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ring import carrier, signed, unsigned

CHUNK = 1 << 19  # entries at a time, so that temporaries stay in cache


@lru_cache(maxsize=256)
def ring_table(table: tuple[int, ...], bits: int) -> Tensor:
    """Public integers as elements of Z_2^bits; one tensor for all layers and stages that use the same."""
    return torch.tensor(table, dtype=torch.int64).to(carrier(bits))


@register
@dataclass(frozen=True)
class Lookup(Op):
    """table[x] of an opened x in Z_2^n, any public table of 2^n ring integers on Z_2^l. Exact.

    1. The dealer shares the table rotated by the mask: T_i = table[i - r].
    2. The parties take [T] at m. No round beyond the opening. (One-time truth tables, Ishai et al. 2013.)
    """

    shape: Shape
    n: int
    bits: int
    table: tuple[int, ...]

    @property
    def _table(self) -> Tensor:
        return ring_table(self.table, self.bits)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self._table.to(x[0].device)[unsigned(x[0], self.n)], self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def dealt(self) -> Types:
        return {"T": Shared((math.prod(self.shape), 1 << self.n), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = unsigned(masks[0], self.n).reshape(-1)
        i = torch.arange(1 << self.n)
        if len(r) > len(i):  # every rotation once, then one picked for each element
            return {"T": self._table[(i[None, :] - i[:, None]) % len(i)][r]}
        return {"T": self._table[(i[None, :] - r[:, None]) % len(i)]}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m = unsigned(x[0].value, self.n).reshape(-1, 1)
        return (k["T"].gather(1, m)[:, 0].reshape(self.shape),)


@register
@dataclass(frozen=True)
class OneHot(Op):
    """The one-hot vector of an opened x in Z_2^n: [..., 2^n] on Z_2^l. Exact.

    1. The dealer shares the one-hot of the mask, e_r.
    2. x = j exactly where r = m - j: [e_x]_j = [e_r]_(m - j). No round beyond the opening.
    `dropped`: x has so many low bits more, without which m and r are read. The entry is that of floor(x / 2^dropped),
    or the next one, since they may carry; in `plain` the nearer one.
    """

    shape: Shape
    n: int
    bits: int
    dropped: int = 0

    def _index(self, x: Tensor) -> Tensor:
        return unsigned(x >> self.dropped, self.n)

    def ulp(self) -> float:
        return float(self.dropped > 0)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        hot = torch.nn.functional.one_hot(self._index(x[0] + ((1 << self.dropped) >> 1)), 1 << self.n)
        return (signed(hot, self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def dealt(self) -> Types:
        return {"hot": Shared((math.prod(self.shape), 1 << self.n), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = self._index(masks[0]).reshape(-1, 1)
        hot = torch.zeros((len(r), 1 << self.n), dtype=carrier(self.bits))
        return {"hot": hot.scatter_(1, r, 1)}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        hot, count = k["hot"], 1 << self.n
        m = self._index(x[0].value).reshape(-1)
        y = torch.empty_like(hot)
        step = max(1, CHUNK // count)
        for start in range(0, len(m), step):
            rows = slice(start, start + step)
            # row j -> hot[m - j]: a window into the reversed row written twice, much faster than a gather of entries
            backwards = hot[rows].flip(1)
            windows = torch.cat([backwards, backwards], 1).view(-1).unfold(0, count, 1)
            at = (count - 1 - m[rows]) + torch.arange(len(backwards)) * (2 * count)
            y[rows] = windows.index_select(0, at)
        return (y.reshape(*self.shape, count),)


@register
@dataclass(frozen=True)
class Combine(Op):
    """A public table applied to a shared one-hot vector: sum_j e_j table_j. Local; exact."""

    bits: int
    table: tuple[int, ...]

    @property
    def _weights(self) -> Tensor:
        return ring_table(self.table, self.bits)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed((x[0] * self._weights.to(x[0].device, torch.int64)).sum(-1), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        weights = self._weights
        return ((x[0].to(weights.dtype) * weights).sum(-1, dtype=weights.dtype),)

"""What a tournament on rows is made of: windows, all differences, losses, a test for zero, positions."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import (
    BitRounds,
    Correlations,
    Op,
    Party,
    Rearrangement,
    Rounds,
    Shape,
    Tensor,
    Types,
    register,
    shared_bits,
)
from ditto.ring import cast, signed, unsigned
from ditto.ring.bits import planes, unplane, words


def starts(n: int, size: int) -> Tensor:
    """Where the windows of `size` of n elements begin: the last one ends with the row, whatever it overlaps."""
    return torch.arange(0, n, size).clamp(max=n - size)


@functools.cache
def pairs(k: int) -> tuple[Tensor, Tensor]:
    """The pairs i < j of k elements, in the order of (i, j)."""
    first, second = torch.triu_indices(k, k, 1)
    return first, second


@register
@dataclass(frozen=True)
class Windows(Rearrangement):
    """[..., N] -> [..., ceil(N / size), size]: consecutive windows, the last one overlapping the one before.

    Opened wires stay opened. Local; exact.
    """

    size: int

    def move(self, *x: Tensor) -> Tensor:
        return x[0][..., starts(x[0].shape[-1], self.size)[:, None] + torch.arange(self.size)]


@register
@dataclass(frozen=True)
class Differences(Rearrangement):
    """[..., k] -> x_i - x_j for all pairs i < j of the last dimension, [..., k (k - 1) / 2], over Z_2^l.

    Opened wires stay opened: (m_i - m_j) - (r_i - r_j), so that k openings serve all pairs. The masks of the
    differences depend on each other; what is public is a function of the k uniform m_i. Local; exact.
    """

    bits: int

    def move(self, *x: Tensor) -> Tensor:
        first, second = pairs(x[0].shape[-1])
        return x[0][..., first] - x[0][..., second]

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self.move(*x), self.bits),)


@register
@dataclass(frozen=True)
class Losses(Op):
    """[b_ij], i < j, as `Differences` orders them -> how often each of k elements loses, [..., k] on Z_2^l.

    b_ij = 1 where i loses against j, else j loses: losses_i = sum_(j > i) b_ij + sum_(j < i) (1 - b_ji).
    Local (party 0 adds the constant i); exact.
    """

    k: int
    bits: int

    def _count(self, x: Tensor) -> Tensor:
        first, second = pairs(self.k)
        y = x.new_zeros((*x.shape[:-1], self.k))
        first, second = first.to(x.device), second.to(x.device)
        return y.index_add_(-1, first, x).index_add_(-1, second, -x)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self._count(x[0]) + torch.arange(self.k, device=x[0].device), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = self._count(cast(x[0], self.bits))
        return (y + cast(torch.arange(self.k), self.bits) if p.party == 0 else y,)


@register
@dataclass(frozen=True)
class IsZero(BitRounds):
    """Opened x = m - r in Z_2^n, few bits -> the opened bit [x = 0]. One round. Exact.

    1. The dealer shares the one-hot vector of r in bits, <e_r>: 2^n bits an element, packed by planes.
    2. x = 0 exactly where r = m: <b> = <e_r>_m, local.
    3. Open b under a mask s known to the dealer: c = b xor s serves `Mux` and `B2A`, as that of `Compare`.
    (One-time truth tables, Ishai et al. 2013, on one bit of output.)
    """

    shape: Shape
    n: int

    @property
    def _words(self) -> int:
        return words(math.prod(self.shape))

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the bit of each element lies in [2^n, words] when it is the one of plane x, and its place there."""
        element = torch.arange(math.prod(self.shape))
        return unsigned(x, self.n).reshape(-1) * self._words + (element >> 6), element & 63

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return ((unsigned(x[0], self.n) == 0).to(torch.int64),)

    def opens(self) -> tuple[Types, ...]:
        return ({"s": shared_bits(self._words)},)

    def dealt(self) -> Types:
        return {"hot": shared_bits(1 << self.n, self._words)}

    def correlate(self, *masks: Tensor) -> Correlations:
        at, place = self._at(masks[0])
        hot = torch.zeros(self._words << self.n, dtype=torch.int64)
        hot.index_add_(0, at, torch.ones_like(at) << place)  # each bit is set once: the sum is their union
        return {"hot": hot.reshape(1 << self.n, self._words)}  # 1

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return (unplane(masks[-1], self.shape),)

    def rounds(self, party: int, k: Correlations, *x: Any) -> Rounds[tuple[Any, ...]]:
        at, place = self._at(x[0].value)
        bit = planes(k["hot"].reshape(-1)[at] >> place, 1)[0]  # 2
        c = yield bit ^ k["s"]  # 3
        return (unplane(c, self.shape),)


@register
@dataclass(frozen=True)
class AddStarts(Op):
    """[..., G] + the place in a row of n elements where each of its G windows of `size` begins, over Z_2^l.

    Public numbers given by a rule: a program's text does not grow with the row. Local (party 0 adds); exact.
    """

    n: int
    size: int
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0] + starts(self.n, self.size).to(x[0].device), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0], self.bits)
        return (y + cast(starts(self.n, self.size), self.bits) if p.party == 0 else y,)

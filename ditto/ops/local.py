"""Local linear operations: no round, no correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Correlations, Op, Party, Rearrangement, Shape, Tensor, register
from ditto.ring import cast, signed


@register
@dataclass(frozen=True)
class Add(Op):
    """sum_k 2^(s_k) x_k over Z_2^l, with broadcasting; inputs of larger rings are reduced. Exact."""

    bits: int
    shifts: tuple[int, ...]

    def _sum(self, x: tuple[Tensor, ...]) -> Tensor:
        first, *rest = (
            cast(a, self.bits) << shift if shift else cast(a, self.bits)
            for a, shift in zip(x, self.shifts, strict=True)
        )
        return sum(rest, first)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self._sum(x), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        first, *rest = (a * 2.0**shift for a, shift in zip(x, self.shifts, strict=True))
        return (sum(rest, first),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        return (self._sum(x),)


def wrap(a: int, bits: int) -> int:
    """The signed representative of a public integer in Z_2^bits."""
    return (a + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


@register
@dataclass(frozen=True)
class Affine(Op):
    """a x + b over Z_2^l with public integers a, b (party 0 adds b). Exact."""

    bits: int
    a: int
    b: int = 0

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(cast(x[0], 64) * wrap(self.a, 64) + wrap(self.b, 64), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * float(wrap(self.a, 64)) + float(wrap(self.b, 64)),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0], self.bits)
        if self.a != 1:
            y = y * torch.tensor(wrap(self.a, self.bits), dtype=y.dtype)
        return (y + torch.tensor(wrap(self.b, self.bits), dtype=y.dtype) if p.party == 0 and self.b else y,)


@register
@dataclass(frozen=True)
class Sum(Op):
    """Sum over one dimension (kept with length 1) over Z_2^l. Exact."""

    bits: int
    dim: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0].sum(self.dim, keepdim=True), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0].sum(self.dim, keepdim=True),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0], self.bits)
        return (y.sum(self.dim, keepdim=True, dtype=y.dtype),)


@register
@dataclass(frozen=True)
class SuffixSum(Op):
    """y_j = sum_{i >= j} x_i along the last dimension, over Z_2^l. Exact."""

    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(x[0].flip(-1).cumsum(-1).flip(-1), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0].flip(-1).cumsum(-1).flip(-1),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0], self.bits)
        return (y.flip(-1).cumsum(-1, dtype=y.dtype).flip(-1),)


@register
@dataclass(frozen=True)
class View(Rearrangement):
    """Slice, reshape, permute, in that order; opened wires stay opened. Exact.

    `slices` holds (dimension, start, stop) triples of the input.
    """

    slices: tuple[tuple[int, int, int], ...] = ()
    shape: Shape = ()
    dims: tuple[int, ...] = ()

    def move(self, *x: Tensor) -> Tensor:
        y = x[0]
        for dim, start, stop in self.slices:
            y = y.narrow(dim, start, stop - start)
        if self.shape:
            y = y.reshape(self.shape)
        return y.permute(self.dims) if self.dims else y

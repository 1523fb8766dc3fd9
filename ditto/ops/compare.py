"""Comparison of an opened wire with public thresholds: products of the mask's bits by fours, then a tree of ANDs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import BitRounds, Correlations, Rounds, Shape, Tensor, Types, register, shared_bits
from ditto.ring.bits import planes, unplane, words

CHUNK = 1 << 14  # words of a plane at a time: what lies between the bits and the groups' results stays in cache

# Planes of packed bits: the last dimension counts words, & is the product and ^ the sum modulo 2. With r the mask, m
# public and a = not m, one bit has [m = r] = a ^ r and [m < r] = a r. Two bits, the lower one with index 0, have
#     [m = r] = (a1 ^ r1) (a0 ^ r0)         = a0 a1 ^ a1 r0 ^ a0 r1 ^ r0 r1,
#     [m < r] = a1 r1 ^ (a1 ^ r1) a0 r0     = a0 a1 r0 ^ a1 r1 ^ a0 r0 r1:
# sums of the monomials 1, r0, r1, r0 r1 with the public weights a0 a1, a1, a0. Four bits are two pairs (high, low) with
#     [m = r] = equal_h equal_l    and    [m < r] = less_h ^ equal_h less_l,
# sums of the 16 products of a high and a low monomial. The dealer shares those but the first, which is 1.


def _by_fours(bits: Tensor) -> Tensor:
    """Planes of bits, lowest first, in groups of four, the last filled up with zeros: [n, ...] -> [groups, 4, ...]."""
    zeros = bits.new_zeros(-len(bits) % 4, *bits.shape[1:])
    return torch.cat([bits, zeros]).view(-1, 4, *bits.shape[1:])


def _monomials(r: Tensor) -> Tensor:
    """The mask's bits, [groups, 4, words] -> [groups, 15, words]: high monomials by low ones, without 1 by 1."""
    r0, r1, r2, r3 = r.unbind(1)
    one = torch.full_like(r0, -1)
    low, high = torch.stack([one, r0, r1, r0 & r1], 1), torch.stack([one, r2, r3, r2 & r3], 1)
    return (high[:, :, None] & low[:, None]).flatten(1, 2)[:, 1:]


def _equal(weights: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """[m = r] of a pair times y, from x = (y, y r0, y r1, y r0 r1) and the pair's weights."""
    return weights[0] & x[0] ^ weights[1] & x[1] ^ weights[2] & x[2] ^ x[3]


def _less(weights: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """[m < r] of a pair times y, likewise."""
    return weights[0] & x[1] ^ weights[1] & x[2] ^ weights[2] & x[3]


def _compare_groups(monomials: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of [m < r] and [m = r] of every group, [groups, T, words].

    From the shares of the monomials, [groups, 4, 4, 1, words], and public a, [groups, 4, T, words].
    1. For every high monomial h, sum over the low ones: h equal_l and h less_l.
    2. Sum over the high ones: less_h, equal_h less_l and equal_h equal_l.
    """
    a0, a1, a2, a3 = a.unbind(1)
    low, high = (a0 & a1, a1, a0), (a2 & a3, a3, a2)
    rows = [row.unbind(1) for row in monomials.unbind(1)]  # one for each high monomial
    equal, less = [_equal(low, row) for row in rows], [_less(low, row) for row in rows]  # 1
    alone = [row[0] for row in rows]
    return _less(high, alone) ^ _equal(high, less), _equal(high, equal)  # 2


def _leaves(party: int, monomials: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """`_compare_groups` from this party's shares of `_monomials`, some groups at a time."""
    groups, _, count = monomials.shape
    one = monomials.new_full((groups, 1, count), -1 if party == 0 else 0)
    whole = torch.cat([one, monomials], 1).view(groups, 4, 4, 1, count)
    step = max(1, CHUNK // a[0, 0].numel())
    parts = [_compare_groups(whole[g : g + step], a[g : g + step]) for g in range(0, groups, step)]
    less, equal = zip(*parts, strict=True)
    return torch.cat(less), torch.cat(equal)


def _join(party: int, less: Tensor, equal: Tensor, mask: Tensor, dealt: Tensor) -> Rounds[tuple[Tensor, Tensor]]:
    """One level: pairs (low, high) of neighbours; an odd one stays. The lowest `equal` is never needed.

    1. Open equal_h, less_l and, but for the lowest pair, equal_l under the mask: one round.
    2. Beaver: x y = (x + s)(y + t) + (x + s) t + (y + t) s + s t, for equal_h less_l and equal_h equal_l.
    """
    n = len(less) // 2
    high, low = slice(1, 2 * n, 2), slice(0, 2 * n, 2)
    opened = yield torch.cat([equal[high], less[low], equal[low][1:]]) ^ mask  # 1
    a, b, c = opened[:n], opened[n : 2 * n], opened[2 * n :]  # public: equal_h, less_l, equal_l, each masked
    ra, rb, rc = mask[:n], mask[n : 2 * n], mask[2 * n :]
    joined_less = less[high] ^ a & rb ^ b & ra ^ dealt[:n]  # 2
    joined_equal = a[1:] & rc ^ c & ra[1:] ^ dealt[n:]
    if party == 0:
        joined_less, joined_equal = joined_less ^ a & b, joined_equal ^ a[1:] & c
    joined_equal = torch.cat([equal[:1], joined_equal])  # a place holder for the lowest
    return torch.cat([joined_less, less[2 * n :]]), torch.cat([joined_equal, equal[2 * n :]])


@register
@dataclass(frozen=True)
class Compare(BitRounds):
    """Opened x in Z_2^l, public thresholds t_j -> opened bits [x < t_j], signed, for |x - t_j| < 2^(l-1).

    x - t = m' - r with m' = m - t, so msb(x - t) = msb(m') + msb(r) + [m'_low < r_low] mod 2.
    1. The dealer shares msb(r) and, for every four of the other bits, their 15 products; one set for all t_j.
    2. With public m', [less] and [equal] of every group of four bits are linear in those shares: no round.
    3. A tree joins neighbours: less = less_h + equal_h less_l, equal = equal_h equal_l. Each level opens its
       three operands under masks once (AND triples, Beaver 1991): one round.
    4. Open the bit under a mask s known to the dealer: one round. c = bit + s serves `Mux` and `B2A`.
    ceil(log2(ceil((l-1)/4))) + 1 rounds, all thresholds and all elements together. Exact. The value of the wire is c;
    its mask is s. (Comparison by edaBits: Escudero et al. 2020; PUMA and ABY3 pay log2(l) levels.)
    Output shape: [thresholds, *shape].
    """

    shape: Shape
    bits: int
    thresholds: tuple[int, ...]

    @property
    def out(self) -> Shape:
        return (len(self.thresholds), *self.shape)

    @property
    def _groups(self) -> int:
        return -(-(self.bits - 1) // 4)

    @property
    def _levels(self) -> list[int]:
        """How many pairs of neighbours are joined at each level of the tree."""
        levels, left = [], self._groups
        while left > 1:
            levels.append(left // 2)
            left -= left // 2
        return levels

    @property
    def _plane(self) -> Shape:
        return len(self.thresholds), words(math.prod(self.shape))

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        low = torch.stack([x[0] - t for t in self.thresholds])
        return ((low << (64 - self.bits) < 0).to(torch.int64),)

    def opens(self) -> tuple[Types, ...]:
        levels = [{f"level {i}": shared_bits(3 * n - 1, *self._plane)} for i, n in enumerate(self._levels)]
        return *levels, {"s": shared_bits(*self._plane)}

    def dealt(self) -> Types:
        count = self._plane[1]
        types = {"msb": shared_bits(count), "monomials": shared_bits(self._groups, 15, count)}
        for i, n in enumerate(self._levels):
            types[f"products {i}"] = shared_bits(2 * n - 1, *self._plane)
        return types

    def correlate(self, *masks: Tensor) -> Correlations:
        r = planes(masks[0], self.bits)
        values = {"msb": r[-1], "monomials": _monomials(_by_fours(r[:-1]))}  # 1
        for i, n in enumerate(self._levels):
            mask = masks[1 + i]
            equal, less, low = mask[:n], mask[n : 2 * n], mask[2 * n :]
            values[f"products {i}"] = torch.cat([equal & less, equal[1:] & low])
        return values

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return (torch.stack([unplane(plane, self.shape) for plane in masks[-1]]),)

    def rounds(self, party: int, k: Correlations, *x: Any) -> Rounds[tuple[Any, ...]]:
        m = torch.stack([planes(x[0].value - t, self.bits) for t in self.thresholds], 1)
        less, equal = _leaves(party, k["monomials"], ~_by_fours(m[:-1]))  # 2
        for i in range(len(self._levels)):  # 3
            less, equal = yield from _join(party, less, equal, k[f"level {i}"], k[f"products {i}"])
        bit = less[0] ^ k["msb"] ^ (m[-1] if party == 0 else 0)
        c = yield bit ^ k["s"]  # 4
        return (torch.stack([unplane(plane, self.shape) for plane in c]),)

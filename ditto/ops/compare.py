"""Comparison of an opened wire with public thresholds: bits of the mask, nibble tables, a tree of ANDs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ditto.ops.base import Cost, Dealer, Op, Party, Shape, Tensor, need, register
from ditto.ring.bits import planes, unplane, words

Planes = list[Tensor]


def _pairs(groups: int) -> list[int]:
    """How many neighbours are joined at each level of the tree."""
    levels = []
    while groups > 1:
        levels.append(groups // 2)
        groups -= groups // 2
    return levels


def _monomials(low: Planes, zero: Tensor) -> list[Tensor]:
    """The 15 products of the mask's bits in every group of four, groups from low to high."""
    low = low + [zero] * (-len(low) % 4)
    out = []
    for g in range(0, len(low), 4):
        a, b, c, d = low[g : g + 4]
        first, second = [a, b, a & b], [c, d, c & d]
        out += first + [h if j is None else h & first[j] for h in second for j in (None, 0, 1, 2)]
    return out


def _group(monomials: Tensor, one: Tensor, a: Planes) -> tuple[Tensor, Tensor]:
    """Shares of (m < r, m = r) on four bits from shares of the monomials of r and public a = not m.

    On two bits: m = r is a0 a1 + a1 r0 + a0 r1 + r0 r1, and m < r is a0 a1 r0 + a1 r1 + a0 r0 r1.
    """

    def pair(a0: Tensor, a1: Tensor) -> tuple[Planes, Planes]:
        return [a0 & a1, a1, a0], [a0 & a1, a1, a0]

    low_equal, low_less = pair(a[0], a[1])
    high_equal, high_less = pair(a[2], a[3])
    rows = [[one, *monomials[:3]]] + [list(monomials[3 + 4 * i : 7 + 4 * i]) for i in range(3)]
    equal, less = [], []
    for r in rows:  # r: 1, r0, r1, r0 r1, each times one monomial of the high pair
        equal.append(low_equal[0] & r[0] ^ low_equal[1] & r[1] ^ low_equal[2] & r[2] ^ r[3])
        less.append(low_less[0] & r[1] ^ low_less[1] & r[2] ^ low_less[2] & r[3])

    def high(x: Planes) -> Tensor:
        return high_equal[0] & x[0] ^ high_equal[1] & x[1] ^ high_equal[2] & x[2] ^ x[3]

    single = [r[0] for r in rows]
    above = high_less[0] & single[1] ^ high_less[1] & single[2] ^ high_less[2] & single[3]
    return above ^ high(less), high(equal)


@register
@dataclass(frozen=True)
class Compare(Op):
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
    def _plane(self) -> Shape:
        return len(self.thresholds), words(math.prod(self.shape))

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        low = torch.stack([x[0] - t for t in self.thresholds])
        return ((low << (64 - self.bits) < 0).to(torch.int64),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        r = list(planes(need(masks[0]), self.bits))
        d.share_bits(torch.stack([r[-1], *_monomials(r[:-1], torch.zeros_like(r[0]))]))
        for pairs in _pairs(self._groups):
            mask = d.mask_bits((3 * pairs - 1, *self._plane))
            equal, less, low = mask[:pairs], mask[pairs : 2 * pairs], mask[2 * pairs :]
            d.share_bits(torch.cat([equal & less, equal[1:] & low]))
        s = d.mask_bits(self._plane)
        return (torch.stack([unplane(plane, self.shape) for plane in s]),)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        r = p.dealt_bits((1 + 15 * self._groups, self._plane[1]))
        triples = [
            (p.mask_bits((3 * n - 1, *self._plane)), p.dealt_bits((2 * n - 1, *self._plane)))
            for n in _pairs(self._groups)
        ]
        return r, triples, p.mask_bits(self._plane)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        r, triples, s = k
        value = x[0].value
        m = torch.stack([planes(value - t, self.bits) for t in self.thresholds], 1)
        low = torch.cat([m[:-1], torch.zeros((-(self.bits - 1) % 4, *self._plane), dtype=torch.int64)])
        one = torch.full(self._plane, -1 if p.party == 0 else 0)
        shares = [
            _group(r[1 + 15 * g : 16 + 15 * g, None], one, list(~low[4 * g : 4 * g + 4])) for g in range(self._groups)
        ]
        less, equal = (torch.stack(part) for part in zip(*shares, strict=True))
        for mask, dealt in triples:
            less, equal = _join(p, less, equal, mask, dealt)
        bit = less[0] ^ r[0] ^ (m[-1] if p.party == 0 else 0)
        c = p.open_bits(bit ^ s)
        return (torch.stack([unplane(plane, self.shape) for plane in c]),)

    def cost(self) -> Cost:
        levels = _pairs(self._groups)
        plane = 8 * math.prod(self._plane)
        online = sum(3 * n - 1 for n in levels) + 1
        dealer = 8 * self._plane[1] * (1 + 15 * self._groups) + plane * sum(2 * n - 1 for n in levels)
        return Cost(len(levels) + 1, online * plane, dealer)


def _join(p: Party, less: Tensor, equal: Tensor, mask: Tensor, dealt: Tensor) -> tuple[Tensor, Tensor]:
    """One level: pairs (low, high) of neighbours; an odd one stays. The lowest `equal` is never needed."""
    n = len(less) // 2
    high, low = slice(1, 2 * n, 2), slice(0, 2 * n, 2)
    opened = p.open_bits(torch.cat([equal[high], less[low], equal[low][1:]]) ^ mask)
    a, b, c = opened[:n], opened[n : 2 * n], opened[2 * n :]  # public: equal_h, less_l, equal_l, each masked
    ra, rb, rc = mask[:n], mask[n : 2 * n], mask[2 * n :]
    joined_less = less[high] ^ a & rb ^ b & ra ^ dealt[:n]
    joined_equal = a[1:] & rc ^ c & ra[1:] ^ dealt[n:]
    if p.party == 0:
        joined_less, joined_equal = joined_less ^ a & b, joined_equal ^ a[1:] & c
    joined_equal = torch.cat([equal[:1], joined_equal])  # a place holder for the lowest
    return torch.cat([joined_less, less[2 * n :]]), torch.cat([joined_equal, equal[2 * n :]])

"""The range guard: did any value of an opened wire leave its calibrated zone? One word says so, and nothing else."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ring import signed, unsigned
from ditto.ring.bits import words
from ditto.ring.prg import SEED_BYTES, Prg, derive

TOP = 4  # bits of the mask that are dealt: zones are counted in sixteenths of the ring
PARTS = 1 << TOP
PARITIES = 64
KEY = SEED_BYTES // 8  # words of the parties' common key
CHUNK = 1 << 16  # elements at a time: temporaries stay in cache
COLUMNS = 1 << 10  # words at a time, under all parities


@register
@dataclass(frozen=True)
class Random(Op):
    """-> [x] uniform on Z_2^64, known to nobody: each party draws its share afresh from the operating system. Local.

    Opened, its m = x + r is known to both parties and to nobody else, since the dealer knows r alone. `plain` gives 1.
    """

    count: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (torch.ones(self.count, dtype=torch.int64),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        return (Prg(p.draw()).ring((self.count,), 64),)


@register
@dataclass(frozen=True)
class Guard(Op):
    """A key (an opened `Random`), an opened x -> [y] on Z_2^64: 0 if low <= x <= high mod 2^k for all x, else uniform.

    `bits` is k, at most the bits of x's ring: the low k bits of m and r are an opening of x mod 2^k. With u = 2^(k-4)
    the zone is the z = floor((high - low) / u) + 1 sixteenths of that ring around the middle of [low, high]. With c
    such that x + c lies in [0, z u) for every x allowed, and m' = m + c, m'_top - r_top is (x + c)_top or one more,
    since the low bits may carry. No round.
    1. The dealer shares e_r, the one-hot of the top four of the mask's k bits, by exclusive or: 2 bytes an element.
    2. <b> = xor of <e_r>_j over the j for which m'_top - j lies outside the zone, with and without the carry: b = 0
       for every x allowed, 1 for every x more than 3 u / 2 from those (and from 2^k above), either one between.
    3. Both parties expand the common key to a Toeplitz matrix T of 64 rows and a word s.
    4. w_i = T <b>_i xor s; [y]_0 = w_0, [y]_1 = -w_1. If b = 0, w_0 = w_1. Else w_0 xor w_1 = T b is uniform, and 0
       with a chance of 2^-64. w_0 alone is uniform by s.
    Sums of several y, each under an `index` of its own, are of the same kind. Exact for what is in its zone. `plain`
    counts the values that are outside whatever the carry. (Toeplitz hashing: Mansour, Nisan and Tiwari 1993.)
    """

    shape: Shape
    bits: int
    low: int
    high: int
    index: int

    @staticmethod
    def sixteenths(bits: int, low: int, high: int) -> int:
        """The size of the zone on Z_2^bits."""
        return (high - low >> (bits - TOP)) + 1

    @property
    def _zone(self) -> int:
        return self.sixteenths(self.bits, self.low, self.high)

    @property
    def _offset(self) -> int:
        c = ((self._zone << (self.bits - TOP)) - self.low - self.high) >> 1
        return int(signed(torch.tensor(c), self.bits))

    def _top(self, x: Tensor) -> Tensor:
        return unsigned((x + self._offset) >> (self.bits - TOP), TOP)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        top = self._top(x[1])
        return (((top > self._zone) & (top < PARTS - 1)).sum(dtype=torch.int64).reshape(1),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def may_find(self, x: Tensor) -> bool:
        """Can the carry make b = 1 for any of these?"""
        return bool((self._top(x) >= self._zone).any())

    def dealt(self) -> Types:
        return {"hot": Shared((math.prod(self.shape),), PARTS, packed=True)}

    def correlate(self, *masks: Tensor) -> Correlations:
        top = (masks[1].reshape(-1).numpy() >> (self.bits - TOP)) & (PARTS - 1)
        return {"hot": torch.from_numpy(np.left_shift(np.int16(1), top.astype(np.int16)))}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        key, m = x[0].value, x[1].value.reshape(-1)
        bits = self._outside(m, k["hot"])  # 2
        prg = Prg(derive(key.numpy().tobytes(), "guard", self.index))  # 3
        word = _parities(bits, prg.ring((len(bits) + PARITIES - 1,), 64).numpy())  # 4
        word = word ^ prg.ring((1,), 64)
        return (word if p.party == 0 else -word,)

    def _outside(self, m: Tensor, hot: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        """This party's shares of b, 64 to a word."""
        table, offset = _outside_table(self._zone), self._offset
        octets = np.zeros(8 * words(len(m)), dtype=np.uint8)
        for start in range(0, len(m), CHUNK):
            at = slice(start, start + CHUNK)
            top = ((m[at].numpy() + m.numpy().dtype.type(offset)) >> (self.bits - TOP)) & (PARTS - 1)
            b = table.take(top.astype(np.intp), mode="clip") & hot[at].numpy().view(np.uint16)
            for shift in (8, 4, 2, 1):
                b ^= b >> shift
            packed = np.packbits((b & 1).astype(np.uint8), bitorder="little")
            octets[start // 8 : start // 8 + len(packed)] = packed
        return octets.view(np.int64)


@functools.cache
def _outside_table(zone: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """For every m_top the set of r_top, as 16 bits, with which m_top - r_top and one less lie outside the zone."""
    outside = [zone < i < PARTS for i in range(PARTS)]
    rows = [sum(outside[(m - r) % PARTS] << r for r in range(PARTS)) for m in range(PARTS)]
    return np.array(rows, dtype=np.uint16)


def _parities(bits: np.ndarray[Any, np.dtype[np.int64]], stream: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    """64 parities of packed bits as one word, [1]: the t-th with the coefficients stream[t:].

    At each place of a word this is a product with a Toeplitz matrix of its own.
    """
    rows = np.lib.stride_tricks.sliding_window_view(stream, len(bits))
    total = np.zeros(PARITIES, dtype=np.int64)
    for start in range(0, len(bits), COLUMNS):
        at = slice(start, start + COLUMNS)
        total ^= np.bitwise_xor.reduce(rows[:, at] & bits[at], axis=1)
    odd = np.unpackbits(total.view(np.uint8)).reshape(PARITIES, 64).sum(1) & 1
    return torch.from_numpy(np.packbits(odd.astype(np.uint8), bitorder="little").view(np.int64))

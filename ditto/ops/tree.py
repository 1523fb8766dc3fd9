"""Inverses by lines at the nodes of a tree of keys: as many octaves as there are, from a few hundred bytes a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ditto.ops.base import Correlations, Given, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ops.lines import chord, falling, inverse, window
from ditto.ring import carrier, cast, signed
from ditto.ring.dpf import Blocks, Generator, correct, generate, rooted, shares

TOP = 4  # the first depth at which nodes have values
_BLOCK = np.dtype("V16")  # moved as a whole
CHUNK = 512  # numbers at a time: some 20 kB each
EXACT = 52  # the most bits of w: floats hold it
SPLIT = 1 << (TOP - 1)  # nodes with smaller indices go on to the next depth: all others are intervals narrow enough


@register
@dataclass(frozen=True)
class InverseTree(Op):
    """Opened x in Z_2^l -> [2^scale / w], or with `root` [2^scale / sqrt(w)], on Z_2^out, by lines; w is x's low
    n + low bits, first <= w < 2^(n + low) - 2^low, n >= TOP, n + low <= EXACT.

    r's prefixes are the path to a leaf of a binary tree, n deep. At depth d, with s = low + n - d bits left, a node R
    stands for an index i = floor(m / 2^s) - R mod 2^d and, with e = 2^s i + (m mod 2^s), for the w in (e - 2^s, e]:
    if R is on the path, w = e - (r mod 2^s). m alone gives i and e.
    1. The dealer gives both parties corrections of a point function at r (`ditto.ring.dpf`), and each has its root from
       its own seed. Values at depth d >= TOP: 1, and q = r mod 2^s in units of 2^(s - low), rounded.
    2. From the root on, nodes with i < SPLIT are split. Those with more, of depth TOP on, and all of depth n, are ends:
       their intervals are disjoint and cover all w, those above the last depth with relative widths of at most 1/7.
    3. [y] = sum over the ends of A [1] + B [q], with the public line A + B q of its interval, since [1] and [q] are
       shares of 0 at all ends but that on the path: local. No round.
    For each number 16 n - 34 nodes below the root, 8 n - 16 of them ends: 24 n - 50 blocks of AES.
    Relative error (`relative`, for first >= 7 2^low): of a chord 1 / (8 7^2), for the root 3 / 8 of that; of q half a
    part in 7 2^low, for the root a quarter. And of A and B, rounded, 2^(low - 1) + 1/2 units (`rounding`).
    (Boyle, Gilboa, Ishai 2016; values at inner nodes: Boneh et al. 2021; splines by function secret sharing: Boyle et
    al., Eurocrypt 2021.)
    """

    shape: Shape
    bits: int
    low: int
    n: int
    out: int
    root: bool
    scale: int
    first: int

    @property
    def _count(self) -> int:
        return math.prod(self.shape)

    @property
    def _valued(self) -> int:
        return self.n - TOP + 1

    def _window(self, x: Tensor) -> Tensor:
        return window(x, self.bits, 0, self.low + self.n)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        w = self._window(x[0]).clamp(min=self.first).to(torch.float64)
        y = torch.floor(inverse(w, self.root) * 2.0**self.scale + 0.5).to(torch.int64)
        return (signed(y, self.out).reshape(self.shape),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        w, (y,) = self._window(x[0].detach().to(torch.int64)), self.plain(x[0].detach().to(torch.int64))
        return (falling(x[0], y, w, self._power, self.first),)

    def drawn(self) -> Types:
        return {"roots": Shared((self._count + 1, 2), 64, packed=True)}  # one more for the salt

    def dealt(self) -> Types:
        return {
            "salt": Given((2,), 64, packed=True),
            "blocks": Given((self.n, self._count, 2), 64, packed=True),
            "values": Given((self._valued, self._count, 2), self.out),
        }

    def correlate(self, *masks: Tensor) -> Correlations:
        r, roots = self._window(masks[0]), masks[1]
        salt = roots[0, -1] ^ roots[1, -1]
        betas = torch.ones((self._valued, self._count, 2), dtype=torch.int64)
        for at in range(self._valued):
            left = self._valued - 1 - at  # s - low
            betas[at, :, 1] = ((r & ((1 << (self.low + left)) - 1)) + (1 << left >> 1)) >> left
        blocks, values = generate(
            _generator(salt), roots[:, :-1].numpy().view(np.uint64), (r >> self.low).numpy(), self.n, betas.numpy()
        )  # 1
        kept = {"blocks": torch.from_numpy(blocks.view(np.int64)), "values": cast(torch.from_numpy(values), self.out)}
        return {"salt": salt, **kept}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m, generator = self._window(x[0].value), _generator(k["salt"])
        roots = rooted(k["roots"].numpy().view(np.uint64), p.party)
        blocks, values = k["blocks"].numpy().view(np.uint64), k["values"].to(torch.int64).numpy()
        y = torch.empty(self._count, dtype=carrier(self.out))
        for start in range(0, self._count, CHUNK):
            at = slice(start, min(start + CHUNK, self._count))
            nodes, indices, depths = self._ends(generator, roots[at], blocks[:, at], m[at].numpy())  # 2
            found = torch.from_numpy(shares(generator, nodes, values[depths - TOP, at], p.party))
            left = torch.from_numpy(self.low + self.n - depths)[:, None]
            a, b = self._lines(m[at], torch.from_numpy(indices), left)
            y[at] = (found[..., 0] * a + found[..., 1] * b).sum(0)  # 3
        return (y.reshape(self.shape),)

    def _ends(
        self, generator: Generator, roots: Blocks, corrections: Blocks, m: npt.NDArray[np.int64]
    ) -> tuple[Blocks, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A party's blocks of all ends [ends, numbers, 2], their indices [ends, numbers], and depths [ends].

        The nodes of a depth are held by ascending index.
        """
        nodes, ends, indices, depths = roots[None], [], [], []
        for depth in range(1, self.n + 1):
            odd = (m >> (self.low + self.n - depth) & 1).astype(bool)
            children = generator.children(nodes)
            correct(children, nodes, corrections[depth - 1])
            nodes = _by_index(children, odd)
            if depth < TOP:
                continue
            first = SPLIT if depth < self.n else 0
            index = np.repeat(np.arange(first, len(nodes))[:, None], len(m), 1)
            index[-1] = np.where(odd, len(nodes) - 1, (1 << depth) - 1)
            ends.append(nodes[first:])
            indices.append(index)
            depths.append(np.full(len(index), depth))
            nodes = nodes[:SPLIT]
        return np.concatenate(ends), np.concatenate(indices), np.concatenate(depths)

    def _lines(self, m: Tensor, indices: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of the intervals of indices, 2^left wide: y at their ends, and what a 2^low-th of them below adds."""
        ends = (indices << left) + (m & ((1 << left) - 1))
        size = (torch.ones((), dtype=torch.int64) << left).to(torch.float64)
        e = ends.to(torch.float64)
        a, b = (e - size).clamp(min=self.first), e.clamp(min=self.first + 1)
        slope, constant, lowered = chord(a, b, self.root)
        below = ends <= self.first
        slope = torch.where(below, 0.0, slope)
        at_end = torch.where(below, inverse(a, self.root), constant + slope * e)
        step = slope * (size * -(2.0**-self.low))
        at_end, step = (torch.floor(z * (lowered * 2.0**self.scale) + 0.5).to(torch.int64) for z in (at_end, step))
        return at_end, step

    def ulp(self) -> float:
        """For any x: as large as the largest y, where w is below `first`, or no further from 2^(n + low) than 2^low,
        where intervals at both ends of the circle meet. Those from `first` on: `relative` and `rounding`."""
        largest = 2.0**self.scale * float(inverse(torch.tensor(self.first, dtype=torch.float64), self.root))
        below = self._power * (1 << self.low) / self.first  # there a line goes on
        return largest * (1 + below) + self.rounding

    @property
    def _power(self) -> float:
        return 0.5 if self.root else 1.0

    @property
    def relative(self) -> float:
        """Largest relative error for first <= w < 2^(n + low) - 2^low, but for `rounding`: of a chord, and of q."""
        width = max((1 << self.low) / self.first, 1 / (SPLIT - 1))
        return (3 / 8 if self.root else 1.0) * width**2 / 8 + self._power * width / (1 << self.low) / 2

    @property
    def rounding(self) -> float:
        """Units: A half, B half for each of up to 2^low, and `plain` half."""
        return 1 + (1 << self.low) / 2


def _by_index(children: Blocks, odd: npt.NDArray[np.bool_]) -> Blocks:
    """Children [n, 2, T, 2] of nodes by ascending index, which are 0 to n - 1 -> [2 n, T, 2] by ascending index.

    Those of i have 2 i + b and, the right one, one less, b the next bit of m. So of them all the first one has b - 1,
    and where that is -1, it is the largest index of the depth, and goes last."""
    nodes = children[:, ::-1].reshape(-1, *children.shape[2:])
    found = np.empty_like(nodes)
    whole, ordered = (x.view(_BLOCK)[..., 0] for x in (nodes, found))
    ordered[:-1] = np.where(odd, whole[:-1], whole[1:])
    ordered[-1] = np.where(odd, whole[-1], whole[0])
    return found


def _generator(salt: Tensor) -> Generator:
    return Generator(bytes(salt.contiguous().view(torch.uint8).numpy()))

"""Is any of a row's values at or above a threshold? From parities of random subsets: shares of bits, not of counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ditto.ops.base import (
    BitRounds,
    Correlations,
    Op,
    Party,
    Rearrangement,
    Rounds,
    Shape,
    Shared,
    Tensor,
    Types,
    register,
    shared_bits,
)
from ditto.ops.causal import Triangle, Untriangle
from ditto.ring import cast, signed, unsigned
from ditto.ring.bits import planes, words
from ditto.ring.prg import Prg, derive

DIGIT = 3  # bits
OTHERS = (1 << DIGIT) - 1  # values of a digit but 0
WORD = 64
CHUNK = 1 << 19  # elements at a time

Words = npt.NDArray[np.unsignedinteger[Any]]


@register
@dataclass(frozen=True)
class Sketch(BitRounds):
    """A key (an opened `Random`), an opened x in Z_2^l -> opened words z_t, t = 1, ..., `asked`, for every row of x.

    z_t = 0 if no id of the row is in [t, counted]; else z_t != 0, but with a chance of 2^-k, k = DIGIT `digits`. An
    element's id is its top n bits: floor(x / 2^(l-n)) mod 2^n, or one more, since the mask's low bits may carry.
    `shape`: of x, [..., N]; if `causal` [..., N (N + 1) / 2] as `Triangle` gives. Result: [..., asked, digits], if
    `causal` [..., N, asked, digits], each digit exclusive-or masked. `plain` gives digits 1 and 0.

    1. The dealer shares the one-hot vector of -r_top by exclusive or: 2^n bits an element.
    2. Rotated by m_top it is that of the id; <h_t>, the parity of its bits t to counted, says t <= id <= counted.
    3. The parties expand the key to a word rho_j of k bits for every column j; <z_t> = xor_j rho_j <h_jt>. Local.
    4. Open z under masks s known to the dealer. One round.
    With h_jt = 1 for some j, z_t is uniform, since nothing that ids depend on depends on rho; who knows rho learns
    nothing by it. (Parities of random subsets: Freivalds 1977, Naor and Naor 1990.)
    """

    shape: Shape
    bits: int
    n: int
    asked: int
    counted: int
    digits: int
    index: int
    causal: bool = False

    @property
    def _columns(self) -> int:
        return (math.isqrt(8 * self.shape[-1] + 1) - 1) // 2 if self.causal else self.shape[-1]

    @property
    def _rows(self) -> Shape:
        return (*self.shape[:-1], self._columns) if self.causal else self.shape[:-1]

    @property
    def out(self) -> Shape:
        return (*self._rows, self.asked, self.digits)

    @property
    def _bits(self) -> Shared:
        return shared_bits(DIGIT * self.digits, words(math.prod(self._rows) * self.asked))

    @property
    def _word(self) -> int:
        """Bits of the words that a one-hot vector is made of."""
        return min(WORD, 1 << self.n)

    def ulp(self) -> float:
        return float(self.bits > self.n)

    def _ids(self, x: Tensor) -> Tensor:
        return unsigned(x >> (self.bits - self.n), self.n)

    def _top(self, x: Tensor) -> npt.NDArray[np.int64]:
        top: npt.NDArray[np.int64] = self._ids(x).numpy()
        return top

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        half = (1 << (self.bits - self.n)) >> 1
        ids = self._ids(x[1] + half)
        if self.causal:
            ids = self._squared(ids)
        rows = [((ids >= t) & (ids <= self.counted)).any(-1) for t in range(1, self.asked + 1)]
        return (torch.stack(rows, -1)[..., None].expand(self.out).to(torch.int64),)

    def _squared(self, x: Tensor) -> Tensor:
        """[..., N (N + 1) / 2] -> [..., N, N], zeros elsewhere."""
        return Untriangle(self._columns).move(x)

    def opens(self) -> tuple[Types, ...]:
        return ({"s": self._bits},)

    def dealt(self) -> Types:
        return {"hot": Shared((math.prod(self.shape), (1 << self.n) // self._word), self._word, packed=True)}

    def correlate(self, *masks: Tensor) -> Correlations:
        at = -self._top(masks[1]).reshape(-1) & ((1 << self.n) - 1)  # 1
        hot = np.zeros((len(at), (1 << self.n) // self._word), dtype=f"u{self._word // 8}")
        one = np.left_shift(hot.dtype.type(1), (at % self._word).astype(hot.dtype))
        np.put_along_axis(hot, (at // self._word)[:, None], one[:, None], 1)
        return {"hot": torch.from_numpy(hot.view(f"i{self._word // 8}"))}

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return (self._as_digits(masks[-1]),)

    def _as_digits(self, of: Tensor) -> Tensor:
        """Planes of words -> digits, [..., asked, digits]."""
        octets = of.contiguous().numpy().view(np.uint8)
        count = math.prod(self._rows) * self.asked
        bits = np.unpackbits(octets, axis=1, count=count, bitorder="little").reshape(self.digits, DIGIT, count)
        digits = bits[:, 0] | bits[:, 1] << np.uint8(1) | bits[:, 2] << np.uint8(2)
        return torch.from_numpy(np.ascontiguousarray(digits.T).view(np.int8)).reshape(self.out)

    def rounds(self, party: int, k: Correlations, *x: Any) -> Rounds[tuple[Any, ...]]:
        levels = self._levels(k["hot"].numpy().view(f"u{self._word // 8}"), self._top(x[1].value).reshape(-1))
        prg = Prg(derive(x[0].value.numpy().tobytes(), "parities", self.index))
        rho = prg.ring((8 * -(-self._columns // 8),), WORD).numpy()
        z = self._combined(levels, _by_bytes(rho.reshape(-1, 8)))
        c = yield planes(z, DIGIT * self.digits) ^ k["s"]  # 4
        return (self._as_digits(c),)

    def _levels(self, hot: Words, m: npt.NDArray[np.int64]) -> Words:
        """2. Of every element the bits <h_t>, bit t % word of word t // word."""
        size, count = hot.dtype.type(self._word), hot.shape[1]
        near = (m & (self._word - 1)).astype(hot.dtype)[:, None]
        if count > 1:
            at = np.arange(count) - (m // self._word)[:, None]
            low, high = (np.take_along_axis(hot, (at - i) % count, 1) for i in (0, 1))
        else:
            low = high = hot
        levels: Words = low << near
        rest = high >> hot.dtype.type(1)
        np.right_shift(rest, size - hot.dtype.type(1) - near, out=rest)
        levels |= rest
        asked = sum(1 << t for t in range(1, self.counted + 1))
        for i in range(count):
            levels[:, i] &= hot.dtype.type(asked >> i * self._word & ((1 << self._word) - 1))
        shift = 1
        while shift < self._word:  # bit t is the parity of all from t on
            levels ^= np.right_shift(levels, hot.dtype.type(shift), out=rest)
            shift *= 2
        for i in reversed(range(count - 1)):
            levels[:, i] ^= np.where(levels[:, i + 1] & hot.dtype.type(1), ~hot.dtype.type(0), hot.dtype.type(0))
        return levels

    def _combined(self, levels: Words, table: npt.NDArray[np.int64]) -> Tensor:
        """3. z of all rows and thresholds, from `_levels` and `_by_bytes`."""
        at, word = np.divmod(np.arange(1, self.asked + 1), self._word)
        sums, places = table.reshape(-1), np.arange(len(table))[:, None] * table.shape[1]
        matrices = levels.reshape(-1, self.shape[-1], levels.shape[1])  # each of one row, if causal of a whole triangle
        z = np.empty((len(matrices), math.prod(self._rows) // len(matrices), self.asked), dtype=np.int64)
        step = max(1, CHUNK // self._columns // z.shape[1])
        for start in range(0, len(matrices), step):
            rows = slice(start, start + step)
            for t in range(self.asked):
                bits = (matrices[rows, :, at[t]] & levels.dtype.type(1 << int(word[t]))) != 0
                if self.causal:
                    bits = self._squared(torch.from_numpy(bits)).numpy()
                octets = np.packbits(bits.reshape(-1, self._columns), axis=1, bitorder="little")
                z[rows, :, t] = np.bitwise_xor.reduce(sums.take(octets.T + places), axis=0).reshape(-1, z.shape[1])
        return torch.from_numpy(z.reshape(-1))


def _by_bytes(rho: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[bytes, 8] words -> their 256 sums by the bits of a byte, [bytes, 256]."""
    table = np.zeros((len(rho), 256), dtype=np.int64)
    for bit in range(8):
        table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] ^ rho[:, bit : bit + 1]
    return table


@register
@dataclass(frozen=True)
class NonZero(Op):
    """Words of opened digits z = c xor s, [..., digits] -> how many digits of each are not 0, [...] on Z_2^l. Exact.

    1. The dealer shares [e_j] = [s = j] for j = 1, ..., 7.
    2. [z != 0] = 1 - [e_c], for c = 0 sum_j [e_j]; summed over the digits. No round.
    (Zero test by Hamming distance, from one opening to a count of few bits: Lipmaa and Toft 2013.)
    """

    shape: Shape
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed((x[0] != 0).sum(-1), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def dealt(self) -> Types:
        return {"hot": Shared((math.prod(self.shape), OTHERS), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        return {"hot": cast(masks[0].reshape(-1, 1) == torch.arange(1, OTHERS + 1), self.bits)}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        hot, c = k["hot"].numpy(), x[0].reshape(-1).numpy()
        zero = np.flatnonzero(c == 0)
        at = np.arange(-1, hot.size - 1, OTHERS) + c  # of e_c; there is none for 0
        found = int(p.party == 0) - hot.reshape(-1).take(at, mode="clip")  # 2
        found[zero] = np.add.reduce(np.ascontiguousarray(hot.take(zero, axis=0).T), axis=0, dtype=hot.dtype)
        y = torch.from_numpy(found)
        return (y.reshape(self.shape).sum(-1, dtype=y.dtype),)


@register
@dataclass(frozen=True)
class LessRow(Rearrangement):
    """[..., N], [..., 1] -> x - 2^shift y over Z_2^l, y's ring at least l - shift bits. Local; exact.

    `causal`: N, if it is not 0: x is [..., N (N + 1) / 2] as `Triangle` gives, y [..., N, 1].
    Both are opened, or none: m_x - 2^shift m_y under r_x - 2^shift r_y. Nothing is opened under such masks.
    """

    bits: int
    shift: int
    causal: int = 0

    def move(self, *x: Tensor) -> Tensor:
        row = x[1].to(x[0].dtype) << self.shift
        if self.causal:
            row = Triangle(self.causal).move(row.expand(*row.shape[:-1], self.causal))
        return x[0] - row

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self.move(*x), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        row = x[1] * 2.0**self.shift
        if self.causal:
            row = Triangle(self.causal).move(row.expand(*row.shape[:-1], self.causal))
        return (x[0] - row,)

"""Inverses by lines, the zone of a number, its high bits: all read a window of the bits of one opened wire."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ditto.ops.base import (
    BitRounds,
    Correlations,
    Masked,
    Op,
    Party,
    Rounds,
    Shape,
    Shared,
    Tensor,
    Types,
    register,
    shared_bits,
    tangent,
)
from ditto.ring import carrier, cast, signed, unsigned
from ditto.ring.bits import parity, planes, unplane, words

Words = npt.NDArray[np.uint64]
_ONE = np.uint64(1)

# A window of an opened x = m - r on Z_2^l is some of its bits, from `shift` on. The window of m less that of r is the
# window of x, on as many bits, or one more where the bits below carry.


def window(x: Tensor, bits: int, shift: int, size: int) -> Tensor:
    """`size` bits of x in Z_2^bits from `shift` on, flat."""
    return (unsigned(x, bits).reshape(-1) >> shift) & ((1 << size) - 1)


def inverse(x: Tensor, root: bool) -> Tensor:
    """1 / x or 1 / sqrt(x): quotients and roots alone, which all processors round alike."""
    return 1 / x.sqrt() if root else 1 / x


def falling(x: Tensor, y: Tensor, w: Tensor, power: float, first: int) -> Tensor:
    """y with the slope -power y / w for x; w below `first` is no number, and has none."""
    slope = -power * y / w.clamp(min=first).reshape(y.shape)
    inside = (w >= first).reshape(y.shape)
    return tangent(x, y.to(x.dtype), (slope * inside).to(x.dtype))


def chord(a: Tensor, b: Tensor, root: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and constant of the chord from a to b, and by what factor its relative error is as large in the middle as
    at both ends."""
    at_a, at_b = inverse(a, root), inverse(b, root)
    slope = (at_b - at_a) / (b - a)
    constant = at_a - slope * a
    worst = constant / (slope * (-3 if root else -2))  # where (constant + slope x) / y(x), 1 at a and b, is largest
    return slope, constant, 2 / (1 + (constant + slope * worst) / inverse(worst, root))


def _columns(starts: Tensor, op: InverseLines) -> tuple[Tensor, Tensor]:
    """y at the start and slope of the line for x from each start on, for 2^low steps."""
    a = starts.to(torch.float64)
    b = (a + (1 << op.low)).clamp(op.first + 1, 1 << (op.low + op.n))
    a = a.clamp(min=op.first)
    slope, constant, lowered = chord(a, b, op.root)
    below = starts + (1 << op.low) <= op.first
    slope = torch.where(below, 0.0, slope)
    intercept = torch.where(below, inverse(a, op.root), constant + slope * starts)
    intercept, slope = (torch.floor(z * (lowered * 2.0**op.scale) + 0.5).to(torch.int64) for z in (intercept, slope))
    return intercept.to(carrier(op.out)), slope.to(carrier(op.out))


@lru_cache(maxsize=32)
def _all_columns(op: InverseLines) -> tuple[Tensor, Tensor]:
    return _columns(torch.arange(1 << (op.low + op.n)), op)


@register
@dataclass(frozen=True)
class InverseLines(Op):
    """Opened x in Z_2^l -> [2^scale / w], or with `root` [2^scale / sqrt(w)], on Z_2^out, by lines; w is a window of x.

    w has n + low bits; the tables have entries for the upper n. For 2^low <= first <= w.
    With m and r as windows, m = 2^low M + c: w is in [s, s + 2^low) for s = 2^low M - r, which M and r give without c.
    So the dealer knows, for each M, where the bucket lies, and its line: y = A(s) + B(s) (w - s), and w - s = c.
    1. The dealer shares A(2^low i - r) and B(2^low i - r) for each of 2^n values i of M.
    2. [y] = [A]_M + c [B]_M. No round beyond the opening.
    Relative error: 2^(2 low) / (8 w^2), for the root 3 / 8 of this, and that of B rounded; w is one more where bits
    below the window carry. (One-time truth tables, Ishai et al. 2013, of affine functions.)
    """

    shape: Shape
    bits: int
    shift: int
    low: int
    n: int
    out: int
    root: bool
    scale: int
    first: int

    def _lines(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        starts = starts & ((1 << (self.low + self.n)) - 1)
        if starts.numel() < 1 << (self.low + self.n):
            return _columns(starts, self)
        a, b = _all_columns(replace(self, shape=(), bits=0, shift=0))
        return a.to(starts.device)[starts], b.to(starts.device)[starts]

    def _window(self, x: Tensor) -> Tensor:
        return window(x, self.bits, self.shift, self.low + self.n)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        w = self._window(x[0])
        c = w & ((1 << self.low) - 1)
        a, b = self._lines(w - c)
        return (signed(a + c * b, self.out).reshape(self.shape),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        w, (y,) = self._window(x[0].detach().to(torch.int64)), self.plain(x[0].detach().to(torch.int64))
        power = 0.5 if self.root else 1.0  # a step of x is 2^-shift of one of w
        return (falling(x[0], y, w, power * 2.0**-self.shift, self.first),)

    def dealt(self) -> Types:
        table = Shared((math.prod(self.shape), 1 << self.n), self.out)
        return {"A": table, "B": table}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = self._window(masks[0])
        a, b = self._lines((torch.arange(1 << self.n) << self.low)[None, :] - r[:, None])
        return {"A": a, "B": b}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m = self._window(x[0].value)
        M, c = (m >> self.low)[:, None], m & ((1 << self.low) - 1)
        a, b = (k[name].gather(1, M)[:, 0] for name in ("A", "B"))
        return ((a + c.to(b.dtype) * b).reshape(self.shape),)  # 2

    def ulp(self) -> float:
        """By trial: the most that any bucket gives for a w, or for the next one, is off what `plain` gives.

        That is for all w, those below `first` or with a next one of 0 among them, where it is as large as y."""
        w, c = torch.arange(1 << (self.low + self.n)), torch.arange(1 << self.low)
        a, b = self._lines(w[:, None] - c[None, :])
        found = signed(a + c * b, self.out)
        same = found - found[w, w & (len(c) - 1)][:, None]
        after = found.roll(-1, 0) - found[w, w & (len(c) - 1)][:, None] if self.shift else same
        return float(torch.maximum(same.abs(), after.abs()).max())


@register
@dataclass(frozen=True)
class HighBits(Op):
    """Opened x in Z_2^l -> opened x / 2^shift on Z_2^out, rounded up or down at random: up by x's part below, out <=
    l - shift.

    The parties have no shares of the result's mask, which is the window of x's: for operations that are dealt what they
    need of it, such as `Lookup`, `Guard`, and `WideProduct` onto a larger ring. Local; no correlation.
    """

    bits: int
    shift: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(signed(x[0] + (1 << self.shift >> 1), self.bits) >> self.shift, self.out),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * 2.0**-self.shift,)

    def _high(self, x: Tensor) -> Tensor:
        return cast(unsigned(x, self.bits) >> self.shift, self.out)

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return (self._high(masks[0]),)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        high = self._high(x[0].value)
        return (Masked(high, high.new_empty(0)),)

    def ulp(self) -> float:
        return float(self.shift > 0)


@register
@dataclass(frozen=True)
class Zones(BitRounds):
    """Opened x in Z_2^l -> opened bits [t_k <= i < t_(k+1)], i an n-bit window of x or (a carry) one more, n >= 6.

    One round. Exactly one bit is 1 where the thresholds go from 0 to 2^n. Output shape: [zones, *shape].
    1. The dealer shares the one-hot vector of the mask's window R by exclusive or, <e_R>: 2^n bits an element.
    2. i = j exactly where R = M - j: <b_k> is the exclusive or of <e_R> from M - t_(k+1) + 1 to M - t_k, local.
    3. Open b under a mask s known to the dealer: c = b xor s serves `Mux`, as that of `Compare`.
    (One-time truth tables, Ishai et al. 2013, on one bit of output.)
    """

    shape: Shape
    bits: int
    shift: int
    n: int
    thresholds: tuple[int, ...]

    @property
    def out(self) -> Shape:
        return (len(self.thresholds) - 1, *self.shape)

    def _window(self, x: Tensor) -> Tensor:
        return window(x, self.bits, self.shift, self.n)

    @property
    def _zones(self) -> list[tuple[int, int]]:
        return list(zip(self.thresholds, self.thresholds[1:], strict=False))

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        i = self._window(x[0]).reshape(self.shape)
        return (torch.stack([(low <= i) & (i < high) for low, high in self._zones]).to(torch.int64),)

    def opens(self) -> tuple[Types, ...]:
        return ({"s": shared_bits(words(math.prod(self.out)))},)

    def dealt(self) -> Types:
        return {"hot": shared_bits(math.prod(self.shape), 1 << (self.n - 6))}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = self._window(masks[0])
        hot = torch.zeros((len(r), 1 << (self.n - 6)), dtype=torch.int64)
        return {"hot": hot.scatter_(1, (r >> 6)[:, None], (torch.ones_like(r) << (r & 63))[:, None])}  # 1

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        return (unplane(masks[-1], self.out),)

    def rounds(self, party: int, k: Correlations, *x: Any) -> Rounds[tuple[Any, ...]]:
        bits = self._bits(self._window(x[0].value).numpy(), k["hot"].numpy().view(np.uint64))  # 2
        c = yield planes(torch.from_numpy(bits), 1)[0] ^ k["s"]  # 3
        return (unplane(c, self.out),)

    def _bits(self, m: npt.NDArray[np.int64], hot: Words) -> npt.NDArray[np.uint8]:
        """Shares of the bits of some elements, [zones, elements]: parities of all beginnings of <e_R>.

        Of a beginning the words before its last one are combined by exclusive or, which keeps their parity.
        """
        size, rows = 1 << self.n, np.arange(len(m))
        before = np.zeros((len(m), hot.shape[1] + 1), np.uint64)
        np.bitwise_xor.accumulate(hot, axis=1, out=before[:, 1:])

        def beginning(count: npt.NDArray[np.int64]) -> Words:
            """A word with the parity of so many bits."""
            word, bit = count >> 6, (count & 63).astype(np.uint64)
            rest = hot[rows, np.minimum(word, hot.shape[1] - 1)] & ((_ONE << bit) - _ONE)
            combined: Words = before[rows, word] ^ rest
            return combined

        found = []
        for low, high in self._zones:
            first, after = (m - high + 1) & (size - 1), ((m - low) & (size - 1)) + 1
            around = np.where(first < after, np.uint64(0), before[:, -1]) if high - low < size else np.uint64(0)
            found.append(parity(beginning(after) ^ beginning(first) ^ around))
        return np.stack(found)

    def ulp(self) -> float:
        return float(self.shift > 0)

"""Balanced digits in base 256: how kernels for int8 read matrices, and how a weight's mask is expanded.

w = sum_s 256^s w_s mod 2^l with w_s in [-128, 127]. Let H = sum_s 128 * 256^s: the bytes of w + H are w_s + 128. So no
digit waits for the one below it: one addition, and the highest bit of each byte flipped.

A matrix W [K, N] is kept as [N, digits, K]: by columns, the most significant digit first.
"""

from __future__ import annotations

import numpy as np
import torch

from ditto.ring.malloc import apart
from ditto.ring.ring import carrier, cast

Tensor = torch.Tensor
_AT_ONCE = 1 << 18  # elements that are taken apart at once: what is in between stays small
_ROWS_AT_ONCE = 1 << 16  # the same, where nothing is transposed
_IN_CACHE = 1 << 18  # bytes that are subtracted at once


def count_of(bits: int) -> int:
    """Digits of an element of Z_2^bits."""
    return -(-bits // 8)


def half(bits: int) -> int:
    """H in the carrier of Z_2^bits, signed."""
    return int.from_bytes(b"\x80" * carrier(bits).itemsize, "little", signed=True)


def rows_of_digits(x: Tensor, bits: int) -> Tensor:
    """x [M, K] as int8 [M, digits K], the least significant digits first."""
    numbers, (rows, k), count = cast(x, bits).numpy(), x.shape, count_of(bits)
    out, halves = np.empty((rows, count * k), np.int8), np.array(half(bits), numbers.dtype)
    step = max(1, _ROWS_AT_ONCE // max(1, k))
    for first in range(0, rows, step):
        raised = (numbers[first : first + step] + halves) ^ halves
        for s in range(count):
            place = out[first : first + step, s * k : (s + 1) * k]
            np.right_shift(raised, 8 * s, out=place, casting="unsafe")
    return torch.from_numpy(out)


def digits_of(w: Tensor, bits: int) -> Tensor:
    """W [K, N] as int8 [N, digits, K], in memory of its own."""
    (rows, columns), count = w.shape, count_of(bits)
    out = apart((columns, count, rows), torch.int8)
    step = max(1, _AT_ONCE // max(rows, 1))
    for first in range(0, columns, step):
        part = rows_of_digits(w[:, first : first + step].t().contiguous(), bits)
        out[first : first + step] = part.view(-1, count, rows).flip(1)
    return out


def matrix_of(digits: Tensor, bits: int) -> Tensor:
    """W^T [N, K] in its ring's carrier from its digits [N, digits, K]."""
    columns, count, rows = digits.shape
    out = torch.empty((columns, rows), dtype=carrier(bits))
    step = max(1, _ROWS_AT_ONCE // max(rows, 1))
    for first in range(0, columns, step):
        part, taken = out[first : first + step].numpy(), digits[first : first + step].numpy()
        part[...] = taken[:, 0]
        for s in range(1, count):
            part <<= 8
            part += taken[:, s]
    return out


def subtract(f: Tensor, t: Tensor) -> None:
    """The digits of F - T - H from those of F and T, in T's memory.

    1. The bytes of F + H are f_s + 128, those of T + H are t_s + 128: f_s < t_s compares them, and their difference is
       f_s - t_s mod 256.
    2. From the lowest digit on, a borrow is taken from the next one; a difference of 0 passes it on.
    3. These are the bytes of F - T = (F - T - H) + H.
    """
    step = max(1, _IN_CACHE // max(f[:1].numel(), 1))
    for first in range(0, len(f), step):
        a, b = f[first : first + step].numpy(), t[first : first + step].numpy()
        # 1
        borrows = np.less(a, b).view(np.uint8)
        np.subtract(a, b, out=b)
        # 2
        left = b.view(np.uint8)
        for s in range(a.shape[1] - 2, -1, -1):
            borrow = borrows[:, s + 1]
            if s:
                borrows[:, s] |= np.less(left[:, s], borrow).view(np.uint8)
            left[:, s] -= borrow
        # 3
        left ^= 128

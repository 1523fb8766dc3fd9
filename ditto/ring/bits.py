"""Bit planes: many elements' bits of one weight side by side in 64-bit words, so that one AND serves 64 elements."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

Tensor = torch.Tensor


def words(n: int) -> int:
    """64-bit words that hold one bit of each of n elements."""
    return -(-n // 64)


def planes(x: Tensor, bits: int) -> Tensor:
    """The low `bits` bits of every element of x: int64 [bits, words(n)], least significant plane first."""
    flat = x.contiguous().reshape(-1)
    n, size = len(flat), flat.element_size()
    octets = flat.view(torch.uint8).numpy().reshape(n, size)
    out = np.zeros((bits, words(n) * 8), dtype=np.uint8)
    for byte in range(-(-bits // 8)):
        column = np.ascontiguousarray(octets[:, byte])
        for bit in range(8 * byte, min(8 * byte + 8, bits)):
            packed = np.packbits(column & np.uint8(1 << (bit - 8 * byte)), bitorder="little")
            out[bit, : len(packed)] = packed
    return torch.from_numpy(out).view(torch.int64)


def parity(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Of each word's bits: 0 or 1."""
    for shift in (32, 16, 8, 4, 2, 1):
        words = words ^ words >> np.uint64(shift)
    return words.astype(np.uint8) & np.uint8(1)


def unplane(plane: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One plane back to one element a bit: int8 zeros and ones of `shape`."""
    octets = plane.contiguous().view(torch.uint8).numpy()
    bits = np.unpackbits(octets.reshape(-1), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.int8)).reshape(shape)

"""Ring tensors as bytes: l bits an element, and no copy where a carrier is what is sent.

n elements of Z_2^l are ceil(l n / 8) bytes, little-endian: the floor(l / 8) low bytes of each, one element after
another, and behind all of them the l mod 8 high bits of each, in one stream of bits. So 12 bits are a byte and a half,
and whole bytes stay where a strided copy finds them.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ditto.ring.ring import carrier

Tensor = torch.Tensor
Octets = npt.NDArray[np.uint8]
Bytes = bytes | bytearray | memoryview
_NATIVE = (1, 2, 4, 8)
AT_ONCE = 1 << 16  # elements that are taken apart or put together at once, eights: what is in between stays in cache


def wire_bytes(bits: int, n: int) -> int:
    """Bytes that n elements of Z_2^bits take on the wire: ceil(bits n / 8)."""
    return -(-bits * n // 8)


def packed(x: Tensor, bits: int) -> memoryview:
    """`pack` without a copy where bytes of the carrier are what is sent: a read-only view, of x's memory or of new.

    Whoever keeps it does not write to x.
    """
    x = x.to(carrier(bits)).contiguous().reshape(-1)
    (whole, rest), n = divmod(bits, 8), len(x)
    values = x.numpy()
    if x.element_size() == whole or n == 0:
        return values.view(np.uint8).data.toreadonly()
    size, low = wire_bytes(bits, n), n * whole
    out = np.empty(low + (-(-n // 8) * rest) + 8, dtype=np.uint8)  # room for what is cut off again
    for first in range(0, n if whole else 0, AT_ONCE):
        _write(values[first : first + AT_ONCE], out[first * whole :], whole)
    for first in range(0, n if rest else 0, AT_ONCE):  # after all low bytes: the last value spills over
        some = values[first : first + AT_ONCE]
        high = np.zeros(-(-len(some) // 8) * 8, dtype=np.uint8)
        np.bitwise_and(some >> (8 * whole), (1 << rest) - 1, out=high[: len(some)], casting="unsafe")
        _write(_gather(high, rest), out[low + first // 8 * rest :], rest)
    return out[:size].data.toreadonly()


def pack(x: Tensor, bits: int) -> bytes:
    """Pack to exactly ceil(bits n / 8) bytes; bits of the carrier above a ring's own do not show."""
    return bytes(packed(x, bits))


def unpack(data: Bytes, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack`, but for bits above a ring's own. Raises ValueError when the length does not fit the shape.

    The tensor may be the memory of `data` where that can be written to: its owner hands it over.
    """
    n = math.prod(shape)
    if len(data) != wire_bytes(bits, n):
        raise ValueError(f"{len(data)} bytes for shape {tuple(shape)} over {bits} bits: expected {wire_bytes(bits, n)}")
    dtype = carrier(bits)
    (whole, rest), width = divmod(bits, 8), dtype.itemsize
    if n == 0:
        return torch.zeros(shape, dtype=dtype)
    octets = np.frombuffer(data, dtype=np.uint8)
    if width == whole and octets.flags.writeable and octets.ctypes.data % width == 0:
        return torch.frombuffer(data, dtype=dtype).reshape(shape)
    out = torch.empty(n, dtype=dtype)
    values = out.numpy()
    for first in range(0, n, AT_ONCE):
        some = values[first : first + AT_ONCE]
        if whole:
            _read(octets[first * whole : (first + len(some)) * whole], some, whole)
        if rest:
            begin = n * whole + first // 8 * rest
            _add_high(octets[begin : begin + wire_bytes(rest, len(some))], some, whole, rest)
    return out.reshape(shape)


def _add_high(octets: Octets, values: npt.NDArray[Any], whole: int, rest: int) -> None:
    """Put the `rest` high bits of each element above its `whole` low bytes."""
    words = np.empty(-(-len(values) // 8), dtype=np.uint64)
    padded = np.zeros(len(words) * rest, dtype=np.uint8)
    padded[: len(octets)] = octets
    _read(padded, words, rest)
    spread = _scatter(words, rest)[: len(values)].astype(values.dtype)
    if whole:
        values &= values.dtype.type((1 << (8 * whole)) - 1)  # below: a sign, or bytes of the next element
        spread <<= 8 * whole
        values |= spread
    else:
        values[...] = spread


def added(data: Bytes, bits: int, share: Tensor, out: Tensor, words: bool = False) -> None:
    """out = share + what `data` has packed, of packed bits (`words`) by exclusive or; all in the ring's carrier, flat.

    Whole carriers are added as they lie in `data`. Raises ValueError as `unpack` does.
    """
    kind = share.numpy().dtype
    whole = kind.itemsize * 8 == bits and len(data) == share.numel() * kind.itemsize
    theirs = np.frombuffer(data, kind) if whole else unpack(data, bits, tuple(share.shape)).numpy()
    (np.bitwise_xor if words else np.add)(theirs, share.numpy(), out=out.numpy())


def _write(values: npt.NDArray[Any], out: Octets, size: int) -> None:
    """The low `size` bytes of each, one after another; `out` has room for one value more.

    Where no integer has that size, values are written `size` bytes apart, in order: each covers the spare bytes of the
    one before it. Several times faster than picking bytes.
    """
    n = len(values)
    if size in _NATIVE:
        out[: n * size].view(f"<i{size}")[...] = values.astype(f"<i{size}", copy=False)
    else:
        np.ndarray((n,), dtype=values.dtype, buffer=out.data, strides=(size,))[...] = values


def _read(octets: Octets, out: npt.NDArray[Any], size: int) -> None:
    """Inverse of `_write`; in bits above, a value has bytes of the next one. The last ones would read past the end."""
    n, width = len(out), out.itemsize
    if size in _NATIVE:
        out[...] = octets.view(f"<i{size}")
        return
    most = max(n - width, 0)
    out[:most] = np.ndarray((most,), dtype=out.dtype, buffer=octets.data, strides=(size,))
    rest = octets[most * size :].tobytes() + bytes(width)
    out[most:] = np.ndarray((n - most,), dtype=out.dtype, buffer=rest, strides=(size,))


def _gather(octets: Octets, bits: int) -> npt.NDArray[np.uint64]:
    """Eight elements of `bits` bits, one a byte, to one word of 8 bits: neighbours are joined, thrice."""
    words = octets.view(np.uint64)
    for step in range(3):
        even, odd, apart = _lanes(bits, step)
        words = (words & even) | (words >> apart & odd >> apart)
    return words


def _scatter(words: npt.NDArray[np.uint64], bits: int) -> Octets:
    """Inverse of `_gather`; what is above 8 bits of a word does not show."""
    for step in reversed(range(3)):
        even, odd, apart = _lanes(bits, step)
        words = (words & even) | (words << apart & odd)
    return words.view(np.uint8)


@cache
def _lanes(bits: int, step: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """A word's lanes of 2^step bytes, each with 2^step elements in its low bits: those of the even lanes, those of the
    odd ones, and how far the latter move to join the former."""
    lane, used = 8 << step, bits << step
    even = sum(((1 << used) - 1) << at for at in range(0, 64, 2 * lane))
    return np.uint64(even), np.uint64(even << lane), np.uint64(lane - used)

"""Tensors over Z_2^l: carriers, representatives, and exact wire packing.

A ring tensor is a torch integer tensor whose *low l bits* are the value; higher bits of the carrier may
hold anything (every ring operation except a right shift ignores them). `unsigned` and `signed` give the
canonical representatives. The carrier is the smallest of int8, int16, int32, int64 that holds l bits.
"""

from __future__ import annotations

import math

import numpy as np
import torch

Tensor = torch.Tensor

__all__ = [
    "carrier",
    "cast",
    "pack",
    "shift_right",
    "signed",
    "unpack",
    "unsigned",
    "wire_bytes",
]


def carrier(bits: int) -> torch.dtype:
    """Return the torch dtype that carries Z_2^bits. Raises ValueError outside 1..64."""
    if not 1 <= bits <= 64:
        raise ValueError(f"ring of {bits} bits: must be 1 to 64")
    if bits <= 8:
        return torch.int8
    if bits <= 16:
        return torch.int16
    return torch.int32 if bits <= 32 else torch.int64


def cast(x: Tensor, bits: int) -> Tensor:
    """Reduce integers of any carrier into the carrier of Z_2^bits (low bits kept)."""
    return x.to(carrier(bits))


def _width(x: Tensor) -> int:
    return x.element_size() * 8


def unsigned(x: Tensor, bits: int) -> Tensor:
    """Return the representative in [0, 2^bits) as int64 (for bits = 64: the int64 bit pattern)."""
    x = x.to(torch.int64)
    return x if bits == 64 else x & ((1 << bits) - 1)


def signed(x: Tensor, bits: int) -> Tensor:
    """Return the representative in [-2^(bits-1), 2^(bits-1)) as int64."""
    if bits in (8, 16, 32, 64):  # a whole carrier: the conversions wrap and extend the sign by themselves
        return x.to(carrier(bits)).to(torch.int64)
    return (x.to(torch.int64) << (64 - bits)) >> (64 - bits)


def shift_right(x: Tensor, t: int, bits: int) -> Tensor:
    """Return floor(x / 2^t) of the unsigned representative, in x's carrier (a logical shift)."""
    if t == 0:
        return x
    keep = bits - t
    if keep <= 0:
        return torch.zeros_like(x)
    return (x >> t) & ((1 << keep) - 1)


def wire_bytes(bits: int, n: int) -> int:
    """Bytes that n elements of Z_2^bits take on the wire: ceil(bits / 8) each."""
    return -(-bits // 8) * n


def pack(x: Tensor, bits: int) -> bytes:
    """Pack to exactly ceil(bits / 8) little-endian bytes an element; spare bits are cleared."""
    size = -(-bits // 8)
    x = x.to(carrier(bits)).contiguous()
    if bits % 8 and bits < 64:
        x = x & ((1 << bits) - 1)
    whole = x.reshape(-1).numpy()
    width, n = x.element_size(), whole.size
    if width == size or n == 0:
        return whole.tobytes()
    # Carriers written `size` bytes apart, in order: each covers the spare bytes of the one before it. Several times
    # faster than picking bytes.
    out = np.empty(n * size + width, dtype=np.uint8)
    np.ndarray((n,), dtype=whole.dtype, buffer=out.data, strides=(size,))[...] = whole
    return out[: n * size].tobytes()


def unpack(data: bytes | bytearray | memoryview, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack`, but for bits above a ring's own. Raises ValueError when the length does not fit the shape."""
    n = math.prod(shape)
    size = -(-bits // 8)
    if len(data) != n * size:
        raise ValueError(f"{len(data)} bytes for shape {tuple(shape)} over {bits} bits: expected {n * size}")
    dtype = carrier(bits)
    width = dtype.itemsize
    if n == 0 or width == size:
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if n else torch.zeros(shape, dtype=dtype)
    # Carriers read `size` bytes apart: each takes spare bytes from the next one. The last ones would read past the end.
    out = np.empty(n, dtype=f"<i{width}")
    most = max(n - width, 0)
    out[:most] = np.ndarray((most,), dtype=out.dtype, buffer=data, strides=(size,))
    rest = bytes(data[most * size :]) + bytes(width)
    out[most:] = np.ndarray((n - most,), dtype=out.dtype, buffer=rest, strides=(size,))
    return torch.from_numpy(out).reshape(shape)

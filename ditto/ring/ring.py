"""Tensors over Z_2^l: carriers and representatives.

A ring tensor is a torch integer tensor whose *low l bits* are the value; higher bits of the carrier may
hold anything (every ring operation except a right shift ignores them). `unsigned` and `signed` give the
canonical representatives. The carrier is the smallest of int8, int16, int32, int64 that holds l bits.
"""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor

__all__ = [
    "carrier",
    "carrier_bytes",
    "cast",
    "shift_right",
    "signed",
    "unsigned",
]


_CARRIERS = {  # looked up several times for every small operation
    bits: torch.int8 if bits <= 8 else torch.int16 if bits <= 16 else torch.int32 if bits <= 32 else torch.int64
    for bits in range(1, 65)
}


def carrier(bits: int) -> torch.dtype:
    """Return the torch dtype that carries Z_2^bits. Raises ValueError outside 1..64."""
    try:
        return _CARRIERS[bits]
    except KeyError:
        raise ValueError(f"ring of {bits} bits: must be 1 to 64") from None


def carrier_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a tensor over Z_2^bits in memory: each element in its carrier."""
    return math.prod(shape) * carrier(bits).itemsize


def cast(x: Tensor, bits: int) -> Tensor:
    """Reduce integers of any carrier into the carrier of Z_2^bits (low bits kept)."""
    dtype = carrier(bits)
    return x if x.dtype == dtype else x.to(dtype)  # torch takes longer to find that there is nothing to do


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

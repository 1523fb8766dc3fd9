"""Arithmetic over Z_2^l: ring tensors and their packing, exact matrix products, bit planes, fixed point, seeds."""

from ditto.ring.kernels import batched_product
from ditto.ring.ring import carrier, cast, pack, shift_right, signed, unpack, unsigned, wire_bytes

__all__ = [
    "batched_product", "carrier", "cast", "pack", "shift_right", "signed", "unpack", "unsigned", "wire_bytes",
]  # fmt: skip

"""Arithmetic over Z_2^l: ring tensors and their packing, exact matrix products, bit planes, fixed point, seeds."""

from ditto.ring.kernels import batched_product
from ditto.ring.packing import pack, packed, unpack, wire_bytes
from ditto.ring.ring import carrier, carrier_bytes, cast, shift_right, signed, unsigned

__all__ = [
    "batched_product", "carrier", "carrier_bytes", "cast", "pack", "packed", "shift_right", "signed", "unpack",
    "unsigned", "wire_bytes",
]  # fmt: skip

"""Arithmetic over Z_2^l: ring tensors and their packing, exact matrix products, bit planes, fixed point, seeds."""

from ditto.ring.ring import carrier, cast, matmul, pack, shift_right, signed, unpack, unsigned, wire_bytes

__all__ = ["carrier", "cast", "matmul", "pack", "shift_right", "signed", "unpack", "unsigned", "wire_bytes"]

"""Seeds, key derivation and pseudo-random ring tensors (AES-128 in counter mode)."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ditto.ring import carrier

SEED_BYTES = 16
BLOCK = 1 << 20  # bytes of a stream at a time
ROOM = 15  # bytes that `update_into` asks for behind what it writes: a block of AES less one
_ZEROS = memoryview(bytes(BLOCK))  # what is encrypted: one page for all streams, which stays in the cache


def new_seed() -> bytes:
    """Return a fresh 16-byte seed from the operating system."""
    return os.urandom(SEED_BYTES)


def derive(seed: bytes, *context: str | int) -> bytes:
    """Derive an independent 16-byte key for a context such as (job, operation index): HKDF-SHA256.

    Each part is length-prefixed, so no two contexts collide.
    """
    info = b"".join(len(part).to_bytes(4, "big") + part for part in (str(c).encode() for c in context))
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=b"ditto/v1", info=info).derive(seed)


class Prg:
    """A stream of ring tensors from one key. Two holders of the key that ask alike get the same tensors."""

    def __init__(self, key: bytes) -> None:
        if len(key) != SEED_BYTES:
            raise ValueError(f"seed of {len(key)} bytes: must be {SEED_BYTES}")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def ring(self, shape: tuple[int, ...], bits: int) -> torch.Tensor:
        """Return uniform elements of Z_2^bits (carrier bits above l are pseudo-random too)."""
        dtype, n = carrier(bits), math.prod(shape)
        size = n * dtype.itemsize
        if size == 0:
            return torch.zeros(shape, dtype=dtype)
        data = np.empty(size + ROOM, dtype=np.uint8)  # all of it but the room is written below
        whole = data.data
        for at in range(0, size, BLOCK):
            end = min(at + BLOCK, size)
            self._stream.update_into(_ZEROS[: end - at], whole[at : end + ROOM])
        return torch.frombuffer(data, dtype=dtype, count=n).reshape(shape)

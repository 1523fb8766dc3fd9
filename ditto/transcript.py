"""What was said on a link: a digest of every piece of a message, and running hashes over all messages in order.

Against accidents, not against malice: the key is public. Who would change a message and its digest on the way is kept
out by TLS.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DIGEST = 16  # bytes
Kind = Literal["sent", "received", "dealt"]
_KEY = AESGCM(b"ditto/transcript")


def digest(head: str, data: bytes | memoryview) -> bytes:
    """16 bytes for a piece of a message: its head (names, sizes, type) and its data.

    It is the tag of AES-GCM under a fixed public key, without a plaintext: with d_1 … d_n the blocks of 16 bytes of
    the data and of their length, and h a point that the key gives, `Σ d_i h^(n+1-i)` over GF(2^128), plus a
    pseudo-random value of the head. A change within one block is always seen; another one, made without regard to h,
    is missed where h happens to be a root of a polynomial of degree n: for n / 2^128 of all points.

    On one core of a server with VPCLMUL it reads 28 GB/s, where crc32 reads 2.4, SHA-256 1.3 and blake2b 0.5.
    """
    return _KEY.encrypt(hashlib.sha256(head.encode()).digest()[:12], b"", data)


class Transcript:
    """One party's account of the messages of one job, in order: sent, received, and dealt to it."""

    def __init__(self) -> None:
        self._hashes = {kind: hashlib.sha256() for kind in ("sent", "received", "dealt")}

    def add(self, kind: Kind, label: str, digests: bytes) -> None:
        """Go on with a message: its label, and the digests of its pieces in order."""
        name = label.encode()
        self._hashes[kind].update(len(name).to_bytes(4, "big") + name + len(digests).to_bytes(4, "big") + digests)

    def value(self, kind: Kind) -> bytes:
        """16 bytes: the hash over all messages of a kind so far."""
        return self._hashes[kind].digest()[:DIGEST]

    def summary(self) -> dict[str, str]:
        """For logs: the first digits of each hash. What party 0 sent is what party 1 received."""
        return {f"transcript_{kind}": found.hexdigest()[:DIGEST] for kind, found in self._hashes.items()}

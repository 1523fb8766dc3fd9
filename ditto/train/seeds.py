"""Randomness that follows from a seed and a place, so that a position is all there is to save."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, place: int | str, device: torch.device | None = None) -> torch.Generator:
    """Of an epoch, a step or whatever `place` names. The two are mixed, since torch's generator takes 32 bits of a seed
    and they cannot stand side by side in it."""
    mixed = hashlib.sha256(f"{seed}/{place}".encode()).digest()
    return torch.Generator(device or "cpu").manual_seed(int.from_bytes(mixed[:4], "little"))

"""Share a tensor with the two parties, and reveal one to a client."""

from __future__ import annotations

import torch

from ditto.engine.program import Wire
from ditto.errors import BadShare
from ditto.ops.base import Cost
from ditto.ring import signed
from ditto.ring.prg import Prg, derive


def seeded_share(name: str, wire: Wire, seed: bytes) -> torch.Tensor:
    """Party 0's share of a tensor: expanded from the owner's seed, so that only the seed travels."""
    return Prg(derive(seed, name)).ring(wire.shape, wire.ring)


def share(name: str, x: torch.Tensor, wire: Wire, seed: bytes) -> torch.Tensor:
    """Share x over Z_2^l: return party 1's share. Raises BadShare for a wrong shape.

    1. The owner draws a fresh seed; [x]_0 is its expansion, and the seed goes to party 0.
    2. [x]_1 = x - [x]_0 goes to party 1. Exact. Each share alone is uniform.
    """
    if tuple(x.shape) != wire.shape:
        raise BadShare(f"{name}: shape {tuple(x.shape)}, expected {wire.shape}")
    mine = seeded_share(name, wire, seed)
    return x.to(mine.dtype) - mine


def reveal(shares: tuple[torch.Tensor, torch.Tensor], wire: Wire) -> torch.Tensor:
    """x = [x]_0 + [x]_1 mod 2^l at the client that both parties send their share to: signed int64. Exact."""
    return signed(shares[0].to(torch.int64) + shares[1].to(torch.int64), wire.ring)


def share_cost(wire: Wire) -> Cost:
    """No round between the parties; the owner sends 16 bytes to party 0 and the packed share to party 1."""
    return Cost(0, 16 + wire.nbytes, 0)


def reveal_cost(wire: Wire) -> Cost:
    """No round between the parties; each sends its packed share to the client."""
    return Cost(0, wire.nbytes, 0)

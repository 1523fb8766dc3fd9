"""Share a tensor with the two parties, and reveal one to a client."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ditto.engine.channel import Channel
from ditto.engine.program import Wire
from ditto.errors import BadShare
from ditto.ops.base import Cost
from ditto.ring import cast, signed
from ditto.ring.prg import SEED_BYTES, Prg, derive, new_seed

SPARE = 2  # bits above a bound's own that an answer keeps


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


def common_key(channel: Channel, party: int, job: str, draw: Callable[[], bytes] = new_seed, terms: str = "") -> bytes:
    """A key of one job that both parties know and nobody else. One message of 16 bytes each way. Raises BadShare.

    1. Party i draws s_i, 16 bytes from the operating system, and sends them to the other party. `draw` gives them.
    2. The key is HKDF(s_0 || s_1, "common", job). It is uniform to whoever does not read the link between the parties:
       neither the dealer nor a client does.

    `terms` says what the job is. It is in the message's label, so that parties that run different jobs under one name
    find that out with their first message, before anything is opened.
    """
    # 1
    mine = draw()
    theirs = bytes(channel.exchange(f"common key {terms}".rstrip(), mine))
    if len(theirs) != SEED_BYTES:
        raise BadShare(f"common key: {len(theirs)} bytes from the peer, expected {SEED_BYTES}")
    # 2
    return derive(mine + theirs if party == 0 else theirs + mine, "common", job)


def rerandomised(share: torch.Tensor, party: int, key: bytes, step: int, name: str, wire: Wire) -> torch.Tensor:
    """[y] over Z_2^l shared anew: this party's share of the same y. Exact; no message.

    `key` is the job's common one, `step` the first step of the stage whose output it is.

    1. Both parties expand T, uniform over Z_2^l, from HKDF(key, "output", step, name).
    2. [y']_0 = [y]_0 + T, [y']_1 = [y]_1 - T.

    What a client receives is then ([y']_0, y - [y']_0), and [y']_0 is uniform and independent of all that the dealer
    knows, since T is, and T masks nothing else. A client and the dealer together see y and what they drew themselves.
    As the last operation leaves it, [y]_1 is a public function of the dealer's masks, the weights and the values before
    it: linear equations that say far more of them than y does.
    """
    # 1
    t = Prg(derive(key, "output", step, name)).ring(wire.shape, wire.ring)
    # 2
    y = cast(share, wire.ring)
    return y + t if party == 0 else y - t


def answer_type(wire: Wire) -> Wire:
    """The type in which a client receives an output: the smallest ring of whole bytes that holds its bound, and SPARE
    bits above it.

    An additive share reduces mod 2^l' locally, and y mod 2^l' is y itself for |y| < 2^(l'-1). SPARE keeps values right
    that exceed a calibrated bound somewhat, up to fourfold. The fraction bits stay: dropping low bits of shares is a
    truncation, which rounds at random, so that the answer would no longer be the program's.
    """
    if wire.bound <= 0:
        return wire
    need = math.frexp(wire.bound)[1] + wire.frac + SPARE + 1
    return replace(wire, ring=min(wire.ring, max(8, -(-need // 8) * 8)))


def share_cost(wire: Wire) -> Cost:
    """No round between the parties; the owner sends 16 bytes to party 0 and the packed share to party 1."""
    return Cost(0, 16 + wire.nbytes, 0)


def reveal_cost(wire: Wire) -> Cost:
    """No round between the parties; each sends its packed share to the client."""
    return Cost(0, wire.nbytes, 0)

"""Weights under fixed masks: what the dealer and a party keep of a model between jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from ditto.engine.channel import Channel
from ditto.engine.program import Wire
from ditto.errors import BadShare
from ditto.ops import Masked, WeightShare
from ditto.ring import pack, unpack
from ditto.ring.kernels import RingMatrix, kernel_of
from ditto.ring.prg import Prg, derive

Tensor = torch.Tensor
WHOLE = 250_000_000  # weights: beyond, a second copy takes more memory than it is worth


def keeps_whole(wires: dict[str, Wire]) -> bool:
    """Is the model small enough to keep its matrices twice, where they are digits?"""
    return sum(math.prod(w.shape) for w in wires.values() if w.held == "matrix") <= WHOLE


def weight_mask(seed: bytes, wire: Wire) -> Tensor:
    """One party's share of a weight's fixed mask B."""
    return Prg(derive(seed, "weight", wire.name)).ring(wire.shape, wire.ring)


class DealerWeights:
    """The masks of a model's weights, expanded when first needed and kept for later jobs."""

    def __init__(self, weights: dict[str, Wire], seeds: tuple[bytes, bytes]) -> None:
        self._wires, self._seeds = weights, seeds
        self._cache: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        wire = self._wires[name]
        if wire.held == "share":
            return None
        if name not in self._cache:
            mask = weight_mask(self._seeds[0], wire) + weight_mask(self._seeds[1], wire)
            self._cache[name] = RingMatrix(mask, wire.ring) if wire.held == "matrix" else mask
        return self._cache[name]


class PartyWeights:
    """One party's weights: additive shares, and F = W + B for those under a fixed mask."""

    def __init__(self, weights: dict[str, Wire], party: int, seed: bytes, shares: dict[str, Tensor]) -> None:
        for name, wire in weights.items():
            if name not in shares or tuple(shares[name].shape) != wire.shape:
                raise BadShare(f"weight {name}: expected a share of shape {wire.shape}")
        self.wires, self.party, self._seed, self._shares = weights, party, seed, shares
        self._masked: dict[str, Tensor] = {}
        self._cache: dict[str, Any] = {}

    def open_masked(self, channel: Channel) -> None:
        """Open F = W + B for every weight under a fixed mask: once per model."""
        for name, wire in self.wires.items():
            if wire.held == "share":
                continue
            mine = self._shares[name] + weight_mask(self._seed, wire)
            theirs = channel.exchange(f"weight/{name}", pack(mine, wire.ring))
            self._masked[name] = mine + unpack(theirs, wire.ring, wire.shape)

    def masked(self) -> dict[str, Tensor]:
        return self._masked

    def restore(self, masked: Iterable[tuple[str, Tensor]]) -> None:
        """Take back F from disk, each prepared before the next one is read. Raises BadShare when one is missing."""
        for name, opened in masked:
            self._masked[name] = opened
            self[name]
        missing = [n for n, w in self.wires.items() if w.held != "share" and n not in self._cache]
        if missing:
            raise BadShare(f"masked weight {missing[0]} is missing")

    def warm(self, few: bool = False) -> None:
        """Prepare every weight for products now, so that no job waits for it; `few`: of few rows, too."""
        kernel_of(64)  # products of activations ask for it, too
        whole = few and keeps_whole(self.wires)
        for name, wire in self.wires.items():
            weight = self[name]
            if whole and wire.held == "matrix":
                weight.share.keep_whole()
                weight.masked.keep_whole()

    def __getitem__(self, name: str) -> Any:
        wire = self.wires[name]
        if name not in self._cache:
            if wire.held == "share":
                self._cache[name] = self._shares.pop(name)
            else:
                mask, opened = weight_mask(self._seed, wire), self._masked[name]
                self._shares.pop(name, None)
                if wire.held == "masked":
                    self._cache[name] = Masked(opened, mask)
                else:
                    share = opened - mask if self.party == 0 else -mask
                    self._cache[name] = WeightShare(RingMatrix(share, wire.ring), RingMatrix(opened, wire.ring))
                    del self._masked[name]  # what was prepared holds it from here on
        return self._cache[name]

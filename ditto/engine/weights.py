"""Weights under fixed masks: what the dealer and a party keep of a model between jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ditto.engine.channel import Channel
from ditto.engine.program import Wire
from ditto.errors import BadShare
from ditto.ops import Masked, RightHand, WeightShare
from ditto.ring import packed, unpack
from ditto.ring.digits import count_of, half, matrix_of
from ditto.ring.kernels import RingMatrix, kernel_of
from ditto.ring.prg import Prg, derive

Tensor = torch.Tensor
WHOLE = 250_000_000  # weights: beyond, a second copy takes more memory than it is worth
EXPANDED = 12 << 20  # bytes of a share that are expanded at once: all of a layer's matrix in most models


def keeps_whole(wires: dict[str, Wire]) -> bool:
    """Is the model small enough to keep its matrices twice, where they are digits?"""
    return sum(math.prod(w.shape) for w in wires.values() if w.held == "matrix") <= WHOLE


def _mask_digits(seed: bytes, wire: Wire, at_once: int) -> Iterator[Tensor]:
    """D, of which a party's share of a matrix's mask is made: uniform digits, as `ditto.ring.digits` has them, in
    blocks of columns of at most so many bytes."""
    (rows, columns), count = wire.shape, count_of(wire.ring)
    stream, step = Prg(derive(seed, "weight", wire.name)), max(1, at_once // (count * rows))
    for first in range(0, columns, step):
        yield stream.ring((min(step, columns - first), count, rows), 8)


def weight_mask(seed: bytes, wire: Wire, party: int) -> Tensor:
    """One party's share of a weight's fixed mask B.

    Of a matrix [B]_0 = D + H and [B]_1 = -D, H as in `ditto.ring.digits`: each is uniform as D is, and what a party
    multiplies by, F - [B]_0 or -[B]_1, is had from D in the form that products read.
    """
    if wire.held != "matrix":
        return Prg(derive(seed, "weight", wire.name)).ring(wire.shape, wire.ring)
    d = matrix_of(next(_mask_digits(seed, wire, 8 * math.prod(wire.shape))), wire.ring).t()
    return d.add_(half(wire.ring)) if party == 0 else d.neg_()


class ExpandedShare:
    """d_i F - [B]_i as a right-hand matrix, expanded from the mask's seed whenever it is multiplied by."""

    def __init__(self, seed: bytes, wire: Wire, party: int, masked: RingMatrix) -> None:
        self._of, self._party, self._masked = (seed, wire), party, masked
        self.nbytes = count_of(wire.ring) * math.prod(wire.shape)

    def product(self, x: Tensor) -> Tensor:
        """As RingMatrix has it."""
        return _side_by_side([block.product(x) for block in self._blocks()])

    def expanded(self) -> RightHand:
        """The matrix itself, for one product: its expansion needs nothing of the other factor."""
        return _Expanded([*self._blocks()])

    def _blocks(self) -> Iterator[RingMatrix]:
        masked, done = self._masked, 0
        for digits in _mask_digits(*self._of, EXPANDED):
            if self._party == 0:
                block = masked.less(digits, done)
            else:
                block = RingMatrix.of_digits(digits, masked.bits, masked.kernel)
            yield block
            done += block.columns


class _Expanded:
    def __init__(self, blocks: list[RingMatrix]) -> None:
        self._blocks = blocks

    def product(self, x: Tensor) -> Tensor:
        return _side_by_side([block.product(x) for block in self._blocks])


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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
            mask = weight_mask(self._seeds[0], wire, 0).add_(weight_mask(self._seeds[1], wire, 1))
            self._cache[name] = RingMatrix(mask, wire.ring) if wire.held == "matrix" else mask
        return self._cache[name]


class PartyWeights:
    """One party's weights: additive shares, and F = W + B for those under a fixed mask.

    Its share of a matrix is expanded when it is multiplied by. With `twice` it is held beside F: for models of which a
    job reads every matrix many times.
    """

    def __init__(
        self, weights: dict[str, Wire], party: int, seed: bytes, shares: dict[str, Tensor], twice: bool = False
    ) -> None:
        for name, wire in weights.items():
            if name not in shares or tuple(shares[name].shape) != wire.shape:
                raise BadShare(f"weight {name}: expected a share of shape {wire.shape}")
        self.wires, self.party, self._seed, self._shares = weights, party, seed, shares
        self._masked: dict[str, Tensor] = {}
        self._cache: dict[str, Any] = {}
        self._twice = twice

    def open_masked(self, channel: Channel) -> None:
        """Open F = W + B for every weight under a fixed mask: once per model."""
        for name, wire in self.wires.items():
            if wire.held == "share":
                continue
            mine = packed(weight_mask(self._seed, wire, self.party).add_(self._shares[name]), wire.ring)
            theirs = unpack(channel.exchange(f"weight/{name}", mine), wire.ring, wire.shape)
            self._masked[name] = theirs.add_(unpack(mine, wire.ring, wire.shape))

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

    def warm(self) -> None:
        """Prepare every weight for products now, so that no job waits for it; if held twice, of few rows, too."""
        kernel_of(64)  # products of activations ask for it, too
        whole = self._twice and keeps_whole(self.wires)
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
                opened = self._masked[name]
                self._shares.pop(name, None)
                if wire.held == "masked":
                    self._cache[name] = Masked(opened, weight_mask(self._seed, wire, self.party))
                else:
                    self._cache[name] = self._matrix(wire, opened)
                    del self._masked[name]  # what was prepared holds it from here on
        return self._cache[name]

    def _matrix(self, wire: Wire, opened: Tensor) -> WeightShare:
        masked = RingMatrix(opened, wire.ring)
        if masked.expanded and not self._twice:
            return WeightShare(ExpandedShare(self._seed, wire, self.party, masked), masked)
        mask = weight_mask(self._seed, wire, self.party)
        return WeightShare(RingMatrix(opened - mask if self.party == 0 else -mask, wire.ring), masked)

"""What an operation is: four faces over the same static types, and a stated cost and error.

`plain` computes on the signed integers that the shares stand for; `deal` makes correlations from masks the
dealer knows; `prepare` is a party's offline part; `online` its online part. No operation sees a socket,
a process or a file: a `Party` or `Dealer` context hands out masks, dealt shares and openings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ditto.ring import wire_bytes

Tensor = torch.Tensor
Shape = tuple[int, ...]


@dataclass
class Masked:
    """An opened wire: the public masked value m = x + r mod 2^l and this party's share of the mask r."""

    value: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Cost:
    """Rounds; bytes that each party sends online; bytes that the dealer sends in all."""

    rounds: int = 0
    online: int = 0
    dealer: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.rounds + other.rounds, self.online + other.online, self.dealer + other.dealer)


class Dealer(Protocol):
    """What a dealer's operation may ask for."""

    def mask(self, shape: Shape, bits: int) -> Tensor:
        """Return the sum of both parties' mask shares (both expand it from their seeds: no bytes)."""

    def share(self, x: Tensor, bits: int) -> None:
        """Share x additively: one party expands its share from its seed, the other receives the rest."""

    def mask_bits(self, shape: Shape) -> Tensor:
        """`mask` for packed bits (int64 words): the exclusive or of both parties' words."""

    def share_bits(self, x: Tensor) -> None:
        """`share` for packed bits: exclusive-or shares."""


class Party(Protocol):
    """What a party's operation may ask for."""

    party: int

    def mask(self, shape: Shape, bits: int) -> Tensor:
        """Return this party's share of the next mask."""

    def dealt(self, shape: Shape, bits: int) -> Tensor:
        """Return this party's share of the dealer's next tensor."""

    def open(self, shares: list[Tensor], bits: list[int]) -> list[Tensor]:
        """One round: send these, receive the peer's, return the sums."""

    def mask_bits(self, shape: Shape) -> Tensor:
        """Return this party's share of the next mask of packed bits."""

    def dealt_bits(self, shape: Shape) -> Tensor:
        """Return this party's share of the dealer's next packed bits."""

    def open_bits(self, words: Tensor) -> Tensor:
        """One round on packed bits: send, receive, return the exclusive or."""


class Op:
    """Base of all operations. Outputs and inputs are tuples; an opened wire is a `Masked`."""

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        """Deal correlations. Returns the masks of the output wires (None for a wire that is not opened)."""
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        """Take correlations; the result is handed to `online`."""
        return None

    def prepared_masks(self, k: Any, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        """This party's shares of the masks of the output wires, known before the online phase."""
        return (None,)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def cost(self) -> Cost:
        return Cost()

    def ulp(self) -> float:
        """Largest difference between the reconstructed result and `plain`, in units of the last place."""
        return 0.0


class Rearrangement(Op):
    """A local linear map without constants: the same on plain values, shares, masked values and masks.

    What is opened stays opened; several inputs are all opened, or none.
    """

    def move(self, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (self.move(*x),)

    def _masks(self, masks: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        known = [mask for mask in masks if mask is not None]
        return (self.move(*known) if len(known) == len(masks) else None,)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return self._masks(masks)

    def prepared_masks(self, k: Any, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        return self._masks(masks)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        if all(isinstance(a, Masked) for a in x):
            return (Masked(self.move(*(a.value for a in x)), self.move(*(a.mask for a in x))),)
        return (self.move(*x),)


REGISTRY: dict[str, type[Op]] = {}


def register(cls: type[Op]) -> type[Op]:
    """Add an operation to the registry that the contract test walks."""
    REGISTRY[cls.__name__] = cls
    return cls


def packed_bytes(shape: Shape, bits: int) -> int:
    """Bytes of one packed tensor, dealt or opened."""
    return wire_bytes(bits, math.prod(shape))


def need(x: Tensor | None) -> Tensor:
    """A mask that must be there: the input has to be an opened wire."""
    if x is None:
        raise TypeError("this operation reads an opened wire")
    return x

"""What an operation is: four faces over the same static types, and a stated cost and error.

`plain` computes on the signed integers that the shares stand for; `correlate` makes what the dealer shares from masks
that it knows; `prepare` is a party's offline part; `online` its online part. What is opened and what is dealt is
declared once, by name: who draws what in which order, and the cost, follow from the declarations. No operation sees a
socket, a process or a file: a `Party` or `Dealer` context hands out masks, dealt shares and openings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, final

import torch

from ditto.ring import carrier_bytes, wire_bytes

Tensor = torch.Tensor
Result = TypeVar("Result")
Shape = tuple[int, ...]


@dataclass
class Masked:
    """An opened wire: the public masked value m = x + r mod 2^l and this party's share of the mask r."""

    value: Tensor
    mask: Tensor


class Arriving(Masked):
    """An opened wire that is under way: who reads its value waits for it."""

    def __init__(self, read: Callable[[], Tensor], mask: Tensor) -> None:
        self._read, self.mask = read, mask

    def __getattr__(self, name: str) -> Any:
        if name != "value":
            raise AttributeError(name)
        self.value = self._read()
        del self._read  # and what it held
        return self.value


@dataclass(frozen=True)
class Shared:
    """Type of a tensor that both parties hold a share of: additive over Z_2^bits.

    Of packed bits (`packed`) it is words of that many bits, 64 if nothing else is said, shared by exclusive or.
    """

    shape: Shape
    bits: int
    packed: bool = False

    @property
    def nbytes(self) -> int:
        return packed_bytes(self.shape, self.bits)

    def received(self, seeded: bool) -> int:
        """Bytes that the dealer sends a party, which expands its share from a seed or does not."""
        return 0 if seeded else self.nbytes


@dataclass(frozen=True)
class Given(Shared):
    """Type of what both parties get as it is: the part of their keys that is the same."""

    def received(self, seeded: bool) -> int:
        return self.nbytes


def shared_bits(*shape: int) -> Shared:
    """Type of packed bits: `shape` counts words of 64, as `ditto.ring.bits.planes` makes them."""
    return Shared(shape, 64, packed=True)


Types = dict[str, Shared]
Rounds = Generator[Tensor, Tensor, Result]  # yields this party's packed bits of each round, takes the opened ones
Correlations = dict[str, Tensor]
Opened = tuple[list[Masked], list[Tensor]]


@dataclass(frozen=True)
class Cost:
    """Rounds; bytes that each party sends online; bytes that the dealer sends in all."""

    rounds: int = 0
    online: int = 0
    dealer: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.rounds + other.rounds, self.online + other.online, self.dealer + other.dealer)


WAITS = 256 << 10  # bytes of dealt shares: smaller ones are expanded offline, by both parties


class Dealer(Protocol):
    """What a dealer's operation may ask for."""

    def mask(self, of: Shared) -> Tensor:
        """Return the sum (of packed bits: the exclusive or) of both parties' masks: expanded from seeds, no bytes."""

    def drawn(self, of: Shared) -> Tensor:
        """Return what the parties draw, each from its seed: [2, *shape], no bytes."""

    def share(self, x: Tensor, of: Shared) -> None:
        """Share x: one party expands its share from its seed, the other receives the rest. What is `Given` both do."""


class Party(Protocol):
    """What a party's operation may ask for."""

    party: int

    def mask(self, of: Shared) -> Tensor:
        """Return this party's share of the next mask, or what else it draws next from its seed."""

    def dealt(self, of: Shared) -> Tensor:
        """Return this party's share of the dealer's next tensor, or that tensor where it is `Given`."""

    def open(self, shares: list[Tensor], masks: list[Tensor], bits: list[int], words: list[Tensor]) -> Opened:
        """One round: send these shares under these masks, and packed bits as they are. The sums are waited for when
        they are read; the bits, sums by exclusive or, are there."""

    def open_bits(self, words: Tensor) -> Tensor:
        """One round on packed bits: send, receive, return the exclusive or."""

    def draw(self) -> bytes:
        """Return a fresh 16-byte seed from the operating system, this party's own."""


class Op:
    """Base of all operations. Outputs and inputs are tuples; an opened wire is a `Masked`.

    Masks come from seeds in the order of `opens`, then what else is `drawn`, then dealt shares in the order of `dealt`:
    at the dealer as at the parties, since `deal` and `prepare` both follow the declarations.
    """

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        """For training: the differentiable function that `plain` rounds and reduces, of the same integers as floats.

        Only its derivatives count; its value is replaced by `plain`'s. None for an output that nothing is learnt from,
        such as a bit.
        """
        raise NotImplementedError

    def opens(self) -> tuple[Types, ...]:
        """What the operation opens itself, round by round: each under a fresh mask, of this name and type."""
        return ()

    def drawn(self) -> Types:
        """What each party draws from its seed for itself, and the dealer for both: roots of keys."""
        return {}

    def dealt(self) -> Types:
        """What the dealer shares, or gives both parties as it is."""
        return {}

    def correlate(self, *masks: Tensor) -> Correlations:
        """At the dealer: what `dealt` names, from the masks of the inputs, then those of `opens`, then what is `drawn`,
        each [2, *shape]."""
        return {}

    def output_masks(self, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        """Masks of the outputs from the same masks, None for an output that is not opened.

        A linear map: of a party's shares of masks it makes the party's shares.
        """
        return (None,)

    def dealer_masks(self, *masks: Any) -> tuple[Tensor | None, ...]:
        """`output_masks` at the dealer; it alone can use the mask of an opened bit, which is shared as packed bits."""
        return self.output_masks(*masks)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        """At a party: the outputs. `k` holds its shares of what `opens` and `dealt` name."""
        raise NotImplementedError

    def ulp(self) -> float:
        """Largest difference between the reconstructed result and `plain`, in units of the last place."""
        return 0.0

    # what follows from the declarations

    @cached_property
    def _masks(self) -> Types:
        return {name: of for opened in self.opens() for name, of in opened.items()}

    @cached_property
    def _drawn(self) -> Types:
        return self.drawn()

    @cached_property
    def _dealt(self) -> Types:
        return self.dealt()

    @final
    def deal(self, d: Dealer, *masks: Any) -> tuple[Tensor | None, ...]:
        """Deal correlations. Returns the masks of the output wires (None for a wire that is not opened).

        Raises TypeError for an input that is not opened, and when what `correlate` makes is not what `dealt` declares.
        """
        own = [d.mask(of) for of in self._masks.values()]
        if self._dealt:
            if any(mask is None for mask in masks):
                raise TypeError(f"{type(self).__name__} reads opened wires only")
            values = self.correlate(*masks, *own, *(d.drawn(of) for of in self._drawn.values()))
            if values.keys() != self._dealt.keys():
                raise TypeError(f"{type(self).__name__} deals {[*values]}, declared {[*self._dealt]}")
            for name, of in self._dealt.items():
                x = values.pop(name)
                if x.shape != of.shape or 8 * x.element_size() < of.bits:
                    raise TypeError(f"{type(self).__name__} deals {name} {tuple(x.shape)} {x.dtype}, declared {of}")
                d.share(x, of)
        return self.dealer_masks(*masks, *own)

    def prepare(self, p: Party, *masks: Any) -> Correlations:
        """A party's offline part: take masks and dealt shares."""
        k = {name: p.mask(of) for name, of in (self._masks | self._drawn).items()}
        for name, of in self._dealt.items():
            k[name] = p.dealt(of)
        return k

    @cached_property
    def waits(self) -> bool:
        """Is all that it takes offline shares, read by `online` alone, and large? Whoever expands them from a seed may
        wait until then."""
        kind = type(self)
        alone = not self._masks and kind.prepare is Op.prepare and kind.output_masks is Op.output_masks
        shares = not self._drawn and not any(isinstance(of, Given) for of in self._dealt.values())
        return alone and shares and self.held >= WAITS

    @final
    def prepared_masks(self, k: Correlations, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        """This party's shares of the masks of the output wires, known before the online phase."""
        return self.output_masks(*masks, *(k[name] for name in self._masks))

    @property
    def held(self) -> int:
        """Bytes that a party holds between its phases: masks, what is drawn and dealt shares, in carriers."""
        if type(self).opens is Op.opens and type(self).dealt is Op.dealt:  # most of a program's steps
            return 0
        kinds = (*self._masks.values(), *self._drawn.values(), *self._dealt.values())
        return sum(carrier_bytes(of.shape, of.bits) for of in kinds)

    @final
    def cost(self) -> Cost:
        opens = self.opens()
        online = sum(of.nbytes for opened in opens for of in opened.values())
        return Cost(len(opens), online, self.received(False) + self.received(True))

    @final
    def received(self, seeded: bool) -> int:
        """Bytes that a party takes from the dealer: `seeded`, where it expands its shares from its seed."""
        return sum(of.received(seeded) for of in self._dealt.values())


class BitRounds(Op):
    """An operation that opens packed bits in rounds of its own, one tensor each: other operations may share them."""

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)

    def rounds(self, party: int, k: Correlations, *x: Any) -> Rounds[tuple[Any, ...]]:
        """`online`, whoever carries what it opens."""
        raise NotImplementedError

    @final
    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        running = Running(self.rounds(p.party, k, *x))
        outputs: tuple[Any, ...] = ()
        for _ in self.opens():
            outputs = running.take(p.open_bits(running.words))
        return outputs


class Running:
    """A `BitRounds` operation between two rounds: what it sends in the next one."""

    def __init__(self, rounds: Rounds[tuple[Any, ...]]) -> None:
        self._rounds, self.words = rounds, next(rounds)

    def take(self, opened: Tensor) -> tuple[Any, ...]:
        """Itself, before its next round, or after the last one its outputs."""
        try:
            self.words = self._rounds.send(opened)
        except StopIteration as end:
            outputs: tuple[Any, ...] = end.value
            return outputs
        return (self,)


class Rearrangement(Op):
    """A local linear map without constants: the same on plain values, shares, masked values and masks.

    What is opened stays opened; several inputs are all opened, or none.
    """

    def move(self, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (self.move(*x),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (self.move(*x),)

    def output_masks(self, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [mask for mask in masks if mask is not None]
        return (self.move(*known) if len(known) == len(masks) else None,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        if all(isinstance(a, Masked) for a in x):
            return (Masked(self.move(*(a.value for a in x)), self.move(*(a.mask for a in x))),)
        return (self.move(*x),)


def tangent(x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """y at x, with this slope: what `smooth` says of a function whose derivative is known."""
    return y + slope * (x - x.detach())


REGISTRY: dict[str, type[Op]] = {}


def register(cls: type[Op]) -> type[Op]:
    """Add an operation to the registry that the contract test walks."""
    REGISTRY[cls.__name__] = cls
    return cls


def packed_bytes(shape: Shape, bits: int) -> int:
    """Bytes of one packed tensor, dealt or opened."""
    return wire_bytes(bits, math.prod(shape))

"""One opening under way: its message goes out in pieces as they are ready, and is added up piece by piece as it comes.

How a message is cut follows from the types that are opened alone, so both parties cut alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch

from ditto.engine.channel import Channel, Stream
from ditto.engine.program import Step
from ditto.ops.base import Arriving, Correlations, Op, Opened, Shape, packed_bytes
from ditto.ring import carrier, packed, wire_bytes
from ditto.ring.packing import added

Tensor = torch.Tensor
PIECE = 256 << 10  # bytes of a piece of a large tensor, about: with smaller ones, frames cost more than they save
SMALL = 64 << 10  # smaller tensors share a piece


class Kind(NamedTuple):
    """What is opened of one tensor: its type, and whether shares of it are added up or combined by exclusive or."""

    shape: Shape
    bits: int
    words: bool = False

    def __str__(self) -> str:
        """As labels have it: "24:2x16x768"."""
        return f"{'bits ' * self.words}{self.bits}:{'x'.join(map(str, self.shape))}"


class Part(NamedTuple):
    """Elements of one tensor of a message, and the bytes that they take."""

    tensor: int
    first: int
    last: int
    nbytes: int


class Layout(NamedTuple):
    """What follows from a message's types alone."""

    kinds: tuple[Kind, ...]
    pieces: tuple[tuple[Part, ...], ...]
    sizes: tuple[int, ...]  # bytes of each piece
    text: str  # the kinds, as labels have them


@lru_cache(maxsize=4096)  # a model's openings come again with every job
def layout(kinds: tuple[Kind, ...]) -> Layout:
    pieces = cut(kinds)
    sizes = tuple(sum(part.nbytes for part in piece) for piece in pieces)
    return Layout(kinds, pieces, sizes, "+".join(map(str, kinds)))


@lru_cache(maxsize=4096)
def _first_round(op: Op) -> Layout:
    """Of what an operation opens first: packed bits go before numbers."""
    kinds = [Kind(of.shape, of.bits, of.packed) for of in op.opens()[0].values()]
    return layout(tuple(sorted(kinds, key=lambda kind: not kind.words)))


def cut(kinds: tuple[Kind, ...]) -> tuple[tuple[Part, ...], ...]:
    """A message's pieces: a large tensor is several, of eights of elements, which take as many bytes as in one piece;
    small ones next to each other are one."""
    pieces: list[list[Part]] = [[]]
    size = 0
    for number, kind in enumerate(kinds):
        nbytes = packed_bytes(kind.shape, kind.bits)
        elements = math.prod(kind.shape)
        count = max(1, round(nbytes / PIECE))
        step = max(1, -(-elements // (8 * count)) * 8)
        for first in range(0, elements or 1, step):
            last = min(first + step, elements)
            part = Part(number, first, last, wire_bytes(kind.bits, last - first))
            if size and part.nbytes and size + part.nbytes > SMALL:
                pieces.append([])
                size = 0
            pieces[-1].append(part)
            size += part.nbytes
    return tuple(map(tuple, pieces))


class Opening:
    """One round. Tensors are given in the order of the layout, and read in any order once all are given."""

    def __init__(self, channel: Channel, step: int, name: str, of: Layout) -> None:
        self._kinds, self._pieces, self._sizes, text = of
        self.name = name
        self._label = f"{step}/{name} {text}"  # binds the types: others of the peer's are an error
        self.nbytes = sum(self._sizes)
        self._channel = channel
        self._stream: Stream | None = None
        self._shares: list[Tensor] = []
        self._opened: dict[int, Tensor] = {}
        self._sent = self._taken = 0
        self.start = 0.0  # when waiting for it began, or when it was sent where nobody waited yet
        self.waiting = 0.0

    @property
    def given(self) -> int:
        """Tensors so far."""
        return len(self._shares)

    @property
    def whole(self) -> bool:
        """Has all of it arrived?"""
        return self._taken == len(self._pieces)

    def give(self, share: Tensor) -> None:
        """The next tensor's share, under its mask: what is now complete goes out."""
        if self._stream is None:
            self._stream = self._channel.stream(self._label, self._sizes)
        kind = self._kinds[self.given]
        self._shares.append(share.to(carrier(kind.bits)).contiguous().reshape(-1))
        while self._sent < len(self._pieces) and self._pieces[self._sent][-1].tensor < self.given:
            self._stream.send(self._packed(self._pieces[self._sent]))
            self._sent += 1
        self.start = time.perf_counter()

    def _packed(self, piece: Sequence[Part]) -> bytes | memoryview:
        parts = [packed(_of(self._shares[p.tensor], p), self._kinds[p.tensor].bits) for p in piece]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def value(self, number: int) -> Tensor:
        """A tensor, opened, as soon as it is there. The caller's own."""
        while not self.whole and self._pieces[self._taken][0].tensor <= number:
            self._take()
        return self._opened.pop(number).reshape(self._kinds[number].shape)

    def finish(self) -> None:
        """Wait for all of it."""
        while not self.whole:
            self._take()

    def _take(self) -> None:
        assert self._stream is not None
        began = time.perf_counter()
        if not self.waiting:
            self.start = began
        data = memoryview(self._stream.take())
        self.waiting += time.perf_counter() - began
        at = 0
        for part in self._pieces[self._taken]:
            number, nbytes = part.tensor, part.nbytes
            kind, share = self._kinds[number], self._shares[number]
            if not part.first:
                self._opened[number] = torch.empty_like(share)
            added(data[at : at + nbytes], kind.bits, _of(share, part), _of(self._opened[number], part), kind.words)
            at += nbytes
            if part.last == share.shape[0]:
                self._shares[number] = torch.empty(0)  # nobody needs it any more
        self._taken += 1


def _of(whole: Tensor, part: Part) -> Tensor:
    """A part's elements; of most messages it is all."""
    return whole if part.last - part.first == whole.shape[0] else whole[part.first : part.last]


class Openings:
    """Those of a layer, one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._next: Opening | None = None  # of which some was sent
        self._last: Opening | None = None  # the last one that was sent whole
        self._sent: list[Opening] = []
        self._done: list[Opening] = []
        self._waited = 0.0  # for those that are done
        self.meanwhile: Callable[[], None] = lambda: None  # work for when the next opening is under way

    def open(
        self,
        step: tuple[int, str],
        shares: Sequence[Tensor],
        masks: Sequence[Tensor],
        bits: Sequence[int],
        words: Sequence[Tensor],
    ) -> Opened:
        """What a `Party` promises, for the step of this number and name."""
        count = len(words)
        if self._next is None:
            kinds = [*(Kind(tuple(w.shape), 64, True) for w in words), *_kinds(shares, bits)]
            self._next = Opening(self._channel, *step, layout(tuple(kinds)))
        opening, self._next = self._next, None
        self.finish()
        for number in range(opening.given, count + len(shares)):
            opening.give(words[number] if number < count else shares[number - count] + masks[number - count])
        self._last = opening
        self._sent.append(opening)
        self.meanwhile()
        reads = [partial(opening.value, count + number) for number in range(len(shares))]
        found = [opening.value(number) for number in range(count)]
        return [Arriving(read, mask) for read, mask in zip(reads, masks, strict=True)], found

    def offer(self, index: int, step: Step, k: Correlations, values: Mapping[str, Any]) -> None:
        """Send what there is already of what the next step that opens, number `index`, will open.

        Its last tensor waits for the step itself: before one message ends, all of the one before it is there.
        """
        masks, count = list(k.values()), len(step.inputs) - len(k)
        names = [*step.inputs[len(masks) :], *step.inputs[: len(masks)]]  # packed bits go first
        while (given := self._next.given if self._next else 0) < len(names) - 1 and names[given] in values:
            if self._next is None:
                self._next = Opening(self._channel, index, step.label, _first_round(step.op))
            value = values[names[given]]
            self._next.give(value.words if given < count else value + masks[given - count])

    def finish(self) -> None:
        """Wait for all that was sent whole so far."""
        if self._last is not None:
            last, self._last = self._last, None
            last.finish()
            self._waited += last.waiting
            self._done.append(last)

    @property
    def waiting(self) -> float:
        """Seconds, in all."""
        return self._waited + (self._last.waiting if self._last else 0.0)

    def take_sent(self) -> list[Opening]:
        """Those sent whole since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def take_done(self) -> list[Opening]:
        """Those that arrived whole since the last call."""
        done, self._done = self._done, []
        return done


def _kinds(shares: Sequence[Tensor], bits: Sequence[int]) -> list[Kind]:
    return [Kind(tuple(x.shape), size) for x, size in zip(shares, bits, strict=True)]

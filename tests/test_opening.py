"""Openings in pieces: cut alike everywhere, sent as they are made, read as they come. 2 s."""

from __future__ import annotations

import itertools
import math
import random
import threading
import weakref
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import torch
from engine import Session, both

from ditto.engine import channel as channels
from ditto.engine.channel import MemoryChannel
from ditto.engine.opening import PIECE, SMALL, Kind, Opening, cut, layout
from ditto.engine.plain import run_plain
from ditto.engine.program import Builder, Program
from ditto.engine.weights import ExpandedShare
from ditto.ops import Affine, MatmulWeight, Product
from ditto.ops.base import Arriving, packed_bytes
from ditto.ring import signed
from ditto.ring.prg import Prg, new_seed


def any_kinds(seed: int) -> tuple[Kind, ...]:
    rng = random.Random(seed)
    sizes = [rng.choice((0, 1, 7, 300, 5_000, 70_000, 400_000)) for _ in range(rng.randint(1, 6))]
    kinds = [Kind((size,), rng.choice((1, 4, 12, 16, 19, 32, 36, 64))) for size in sizes]
    return (Kind((3, 40), 64, words=True), *kinds) if seed % 2 else tuple(kinds)


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_message_has_every_element_once_and_no_byte_more(seed: int) -> None:
    kinds = any_kinds(seed)
    pieces = cut(kinds)
    parts = [part for piece in pieces for part in piece]
    assert [part.tensor for part in parts] == sorted(part.tensor for part in parts)
    for number, kind in enumerate(kinds):
        mine = [part for part in parts if part.tensor == number]
        ends = [0, *(part.last for part in mine)]
        assert [part.first for part in mine] == ends[:-1] and ends[-1] == math.prod(kind.shape)
    sizes = [sum(part.nbytes for part in piece) for piece in pieces]
    assert sum(sizes) == sum(packed_bytes(kind.shape, kind.bits) for kind in kinds)
    assert all(sizes) or len(sizes) == 1  # on the link only an empty message has an empty piece
    assert all(size <= 2 * PIECE for size in sizes)
    assert all(one + other > SMALL for one, other in itertools.pairwise(sizes))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_opened_is_the_sum(seed: int) -> None:
    """Whatever the order in which it is read; of packed bits the exclusive or. Both transcripts agree."""
    kinds, numbers, rng = any_kinds(seed), Prg(new_seed()), random.Random(seed)
    shares = [[numbers.ring(kind.shape, kind.bits) for kind in kinds] for _ in (0, 1)]
    ends, order = MemoryChannel.pair(), rng.sample(range(len(kinds)), len(kinds))
    opened: list[dict[int, torch.Tensor]] = [{}, {}]

    def work(party: int) -> None:
        opening = Opening(ends[party], 3, "all", layout(tuple(kinds)))
        for share in shares[party]:
            opening.give(share)
        opened[party] = {number: opening.value(number) for number in order}
        opening.finish()

    both(work)
    for number, kind in enumerate(kinds):
        a, b = (mine[number] for mine in shares)
        want = a ^ b if kind.words else a + b
        for found in opened:
            assert found[number].shape == kind.shape
            assert torch.equal(signed(found[number], kind.bits), signed(want, kind.bits))
    assert ends[0].transcript.value("sent") == ends[1].transcript.value("received")
    assert ends[0].payload_sent == sum(packed_bytes(kind.shape, kind.bits) for kind in kinds)


# In a program ----------------------------------------------------------------------------------------


SHAPE = (200, 200)  # each wire is a piece of its own


def chains() -> Program:
    """Two large wires, made one after the other, opened in one round, squared one after the other; and a product."""
    b = Builder()
    wires = [b.input(name, 32, 0, SHAPE, 4.0) for name in ("x", "y")]
    weight = b.weight("w", 32, 0, (200, 4), "matrix")
    b.layer("layer")
    with b.label("chains"):
        made = [b.affine(wire, 1, 1, 0, bound=5.0) for wire in wires]
        first, second = b.open(*made)
        for name, wire in (("a", first), ("b", second)):
            b.output(name, b.product(wire, wire, bound=25.0))
        b.output("c", b.emit(MatmulWeight(200, 200, 4, 32), [second, weight], [(32, 0, (200, 4), 1000.0)])[0])
    return b.finish()


def test_sent_as_made_used_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire goes out before the next one is made, and is computed with before the next one is there. A weight's share
    is expanded while they are under way."""
    seen: dict[int, list[str]] = defaultdict(list)  # by thread, a party's

    def noted(owner: Any, name: str, event: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any) -> Any:
            seen[threading.get_ident()].append(event)
            return inner(*args)

        monkeypatch.setattr(owner, name, call)

    program, numbers = chains(), Prg(new_seed())
    values = {name: numbers.ring(SHAPE, 32) % 4 for name in ("x", "y")}
    weights = {"w": numbers.ring((200, 4), 32) % 4}
    session = Session(program.weights, weights)
    for owner, name, event in (
        (Affine, "online", "made"), (channels._MemoryStream, "send", "sent"), (channels._MemoryStream, "take", "there"),
        (Product, "online", "used"), (ExpandedShare, "expanded", "expanded"), (MatmulWeight, "online", "product"),
    ):  # fmt: skip
        noted(owner, name, event)
    found = session.run(program, values).outputs
    want = run_plain(program, values, weights)
    assert all(torch.equal(found[name], want[name]) for name in want)
    order = ["made", "sent", "made", "sent", "expanded", "used", "there", "used", "there", "product"]
    assert list(seen.values()) == [order] * 2  # "used" is an operation that begins, and waits for what it reads


def test_an_opened_wire_holds_nothing_else() -> None:
    """Neither the party's share nor what was opened beside it."""
    ends = MemoryChannel.pair()

    def work(party: int) -> None:
        opening = Opening(ends[party], 0, "one", layout((Kind((8,), 32), Kind((8,), 32))))
        for _ in range(2):
            opening.give(torch.ones(8, dtype=torch.int32))
        first = Arriving(partial(opening.value, 0), torch.zeros(8))
        kept = weakref.ref(opening)
        del opening
        assert first.value.tolist() == [2] * 8 and kept() is None

    both(work)


def test_waiting_and_bytes_are_the_openings() -> None:
    """Pieces sent ahead count where the program states them, and rounds are as many as it states."""
    program, numbers = chains(), Prg(new_seed())
    values = {name: numbers.ring(SHAPE, 32) % 4 for name in ("x", "y")}
    run = Session(program.weights, {"w": numbers.ring((200, 4), 32) % 4}).run(program, values)
    for ledger in run.ledgers:
        spent, (opening,) = ledger.total("online"), ledger.times[0].rounds
        assert (spent.rounds, spent.bytes_sent) == (program.cost().rounds, program.cost().online)
        assert opening.bytes_sent == spent.bytes_sent and opening.waiting == spent.waiting <= spent.seconds

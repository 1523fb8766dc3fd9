"""Words looked up by blocks of the table, and what that costs."""

from __future__ import annotations

from math import ceil

import torch
from engine import run_mpc

from ditto.engine.differentiable import Rows, Traced, run_differentiable
from ditto.engine.program import Builder
from ditto.engine.schedule import scheduled
from ditto.functions.fixed import FixedPoint
from ditto.models.description import Dimensions
from ditto.models.encoder.embeddings import block_of, looked_up, one_hot, places, tables
from ditto.models.random import DIMENSIONS, SHAPES
from ditto.ring import signed
from ditto.ring.fixedpoint import decode, encode

TYPE = FixedPoint(16, 11)
SMALL = Dimensions(
    layers=1, hidden=8, heads=1, inner=8, embedding=8, vocabulary=301, positions=4, token_types=2, epsilon=1e-5
)


def test_a_word_is_found_by_its_block_and_its_place_there() -> None:
    """To the bit what both tables have, the last word of the last block included, which is not full; two rounds. A
    training step finds the same, and its gradient reaches the rows that were read, and no other."""
    generator = torch.Generator().manual_seed(1)
    words, types = torch.randn((301, 8), generator=generator), torch.randn((2, 8), generator=generator)
    size, ids, kinds = block_of(SMALL), torch.tensor([0, 300, 7, 8, 150]), torch.tensor([0, 1, 0, 1, 1])
    assert size == 8 and 301 % size
    b = Builder()
    b.layer("embeddings")
    b.output("x", looked_up(b, SMALL, TYPE, len(ids), 8.0, 1 << 40))
    program = scheduled(b.finish())
    assert program.cost().rounds == 2
    assert program.cost().online == 2 * len(ids) * (ceil(301 / size) + size * 8 + size + 2)  # all on 16 bits
    real = tables(SMALL, words, types)
    encoded = {name: encode(real[name], wire.ring, wire.frac) for name, wire in program.weights.items()}
    found = places(SMALL, ids, kinds, 301)
    run = run_mpc(program, {name: one_hot(at, program.inputs[name]) for name, at in found.items()}, encoded)
    want = (torch.floor(words * 2.0**11 + 0.5)[ids] + torch.floor(types * 2.0**11 + 0.5)[kinds]) / 2.0**11
    assert torch.equal(decode(run.outputs["x"], TYPE.ring, TYPE.frac).float(), want)

    words.requires_grad_()
    real = tables(SMALL, words, types)
    traced = {name: Traced.encoded(real[name], wire.ring, wire.frac) for name, wire in program.weights.items()}
    within = signed(one_hot(found.pop("within"), program.inputs["within"]).long(), TYPE.ring)
    inputs = {"within": Traced.constant(within)} | {name: Rows(at) for name, at in found.items()}
    outputs, _ = run_differentiable(program, inputs, traced)
    y = outputs["x"].decoded(program.outputs["x"])
    assert torch.equal(y.detach().float(), want)
    (slope,) = torch.autograd.grad(y.sum(), words)
    assert torch.equal(slope, torch.zeros(301, 8).index_fill_(0, ids, 1.0))


def test_blocks_are_as_large_as_spares_most() -> None:
    """Of a real vocabulary a token opens about a third of its words; of a small one a row of words is the least."""
    for shape, most in (("minilm", 30522 / 4), ("bert-base", 30522 / 3), ("bert-large", 30522 / 2.6)):
        name, layers, hidden, heads, inner = SHAPES[shape]
        d = Dimensions(**DIMENSIONS[name], layers=layers, hidden=hidden, heads=heads, inner=inner, embedding=hidden)  # type: ignore[arg-type]
        size = block_of(d)
        assert ceil(30522 / size) + size * (hidden + 1) < most
        assert size & (size - 1) == 0
    assert block_of(SMALL.model_copy(update={"vocabulary": 30})) == 1

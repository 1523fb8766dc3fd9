"""Parities of random subsets: wrong as often as is said and only in one way, exact where they are counted."""

from __future__ import annotations

import math

import pytest
import torch
from engine import run_mpc

from ditto.engine.program import Builder, Program
from ditto.functions.softmax import DIGIT_COUNT, WORD, ScoreType, softmax_numerator
from ditto.ops import Lookup, NonZero, Sketch
from ditto.ops.sketch import DIGIT
from ditto.ring import signed

ROWS, COLUMNS, BITS = 4000, 40, 5


def used(digits: int) -> Program:
    """Is a number of the row in [1, 1]?"""
    b = Builder()
    b.layer("layer")
    (x,) = b.open(b.input("x", BITS, 0, (ROWS, COLUMNS), 0.0))
    op = Sketch(x.shape, BITS, BITS, 1, 1, digits, 0)
    (words,) = b.emit(op, [b.key(), x], [(DIGIT, 0, op.out, 0.0)])
    (count,) = b.open(*b.emit(NonZero(op.out, DIGIT_COUNT), [words], [(DIGIT_COUNT, 0, op.out[:-1], 0.0)]))
    table = Lookup(count.shape, DIGIT_COUNT, 8, tuple(int(i > 0) for i in range(1 << DIGIT_COUNT)))
    b.output("y", b.emit(table, [count], [(8, 0, count.shape, 0.0)])[0])
    return b.program


@pytest.mark.parametrize("digits", [1, 2])
def test_a_used_value_is_missed_as_often_as_is_said(digits: int) -> None:
    """Random subsets of a row, so that z is uniform under one rho, too, and a miss has its chance in every row; none
    that is not used is found. Under another key others are missed."""
    x = torch.randint(0, 2, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(1))
    x[::2] *= 7  # not in [1, 1]
    program, chance = used(digits), 2.0 ** (-DIGIT * digits)
    missed = []
    for _ in range(2):
        y = run_mpc(program, {"x": signed(x, BITS)}, {}).outputs["y"].reshape(-1)
        assert not y[::2].any()
        missed.append(y[1::2] == 0)
        rate = float(missed[-1].double().mean())
        assert abs(rate - chance) < 6 * math.sqrt(chance / (ROWS / 2)), rate
    assert not torch.equal(*missed)


def test_a_program_has_one_key_and_no_stream_of_it_twice() -> None:
    b = Builder()
    for i in range(2):
        b.layer(f"layer {i}")
        for j in range(2):
            x = b.input(f"x{i}{j}", 16, 9, (2, 8, 8), 0.0)
            softmax_numerator(b, x, ScoreType.of(17.0, 25.0, 30.0), by_bits=True)
    sketches = [step for step in b.program.steps if isinstance(step.op, Sketch)]
    assert len({step.inputs[0] for step in sketches}) == 1
    assert len({step.op.index for step in sketches if isinstance(step.op, Sketch)}) == len(sketches) == 4


def test_misses_in_a_model_of_twelve_layers_are_stated() -> None:
    """bert-base's shape and 128 tokens with 12 buckets asked in every row: below 2^-24 for an inference."""
    assert 12 * 12 * 128 * 12 * 2.0 ** (-DIGIT * WORD) < 2.0**-24
    assert WORD < 1 << DIGIT_COUNT


def test_digits_are_counted_exactly() -> None:
    """Every digit under every mask."""
    z, s = torch.meshgrid(torch.arange(1 << DIGIT), torch.arange(1 << DIGIT), indexing="ij")
    op = NonZero((*z.shape, 1), DIGIT_COUNT)
    dealt = op.correlate(s[..., None].to(torch.int8))["hot"]
    share = torch.randint(-128, 128, dealt.shape, dtype=torch.int8)

    class Party:
        def __init__(self, party: int) -> None:
            self.party = party

    opened = (z ^ s)[..., None].to(torch.int8)
    shares = [op.online(Party(i), {"hot": mine}, opened)[0] for i, mine in enumerate((share, dealt - share))]  # type: ignore[arg-type]
    assert torch.equal(signed(shares[0] + shares[1], DIGIT_COUNT), (z != 0).to(torch.int64))

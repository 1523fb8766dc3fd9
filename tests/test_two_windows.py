"""Softmax without a maximum where scores rise far above the first: one bound for all rows, 1 / sum in two parts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from engine import run_mpc

from ditto.engine.plain import run_plain
from ditto.engine.program import GUARD, Builder, Program
from ditto.engine.schedule import scheduled
from ditto.files import read_json
from ditto.functions.inverse import DIGITS, FIRST, LOW, reciprocal_in_parts
from ditto.functions.layernorm import RESIDUAL, RESULT
from ditto.models.description import LayerRanges, layer_ranges
from ditto.models.ranges import attention_of
from ditto.ops import Cost, Guard, HighBits
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.presets.style import ENCODER, AttentionBounds, Heads, Scores, Stage
from ditto.ring.fixedpoint import decode, encode

Tensor = torch.Tensor
CHOSEN = Choices(used="two windows")
STYLE = preset_of("ditto").style.chosen(CHOSEN)
MPNET = Path(__file__).parents[1] / "benchmarks/ranges/all-mpnet-base-v2.json"
KEYS, SIZE, BOUND = 128, 4, 3.0
CAUSAL, LATER = Stage(causal=True), Stage(causal=True, later=True)
# scores rise U above the first and fall L below it; the table's steps that this takes
RANGES = [(23.9, 27.3, 4), (20.0, 31.3, 8), (14.6, 30.6, 8), (12.0, 15.0, 16)]


def bounds_of(above: float, below: float) -> AttentionBounds:
    return AttentionBounds(12.0, Scores(above + below, above, below, max(above, below)), BOUND)


def attention(above: float, below: float, rows: int) -> tuple[Program, dict[str, Tensor], Tensor, float]:
    """One head of KEYS keys: the program, its inputs, the context in floats, and the units of its result.

    Row i's largest score is (i / rows) U, of one key; the others lie up to 2 U / 3 above that of the first key, where
    calibration saw any, or below it. In the first row no other key's is as high as the first one's.
    """
    generator, bounds = torch.Generator().manual_seed(1), bounds_of(above, below)
    types, circle = STYLE.attention(bounds, ENCODER, KEYS)
    b = Builder(guards=True)
    b.layer("attention")
    shapes = {"q": (1, 1, rows, 3), "k": (1, 1, 3, KEYS), "v": (1, 1, KEYS, SIZE)}
    rings = {"q": 24, "k": 24, "v": types.values}
    q, k, v = b.open(*(b.input(name, rings[name], 8, shape, bounds.qkv) for name, shape in shapes.items()))
    residual = b.input("residual", 24, 12, (rows, SIZE), 1.0)
    b.output("context", STYLE.attend(b, Heads(q, k, v), bounds, residual, ENCODER))
    most = torch.linspace(0, above - 0.25, rows)
    others = (most - 2).clamp(max=above * 2 / 3)  # less what is drawn next
    real = {
        "q": torch.stack([most / 4, others / 4, torch.ones(rows)], 1)[None, None],
        "k": torch.zeros(3, KEYS),
        "v": (2 * torch.rand(shapes["v"], generator=generator) - 1) * BOUND,
    }
    real["k"][0, 1] = 4.0
    real["k"][1, 2:] = 4.0
    real["k"][2, 2:] = -torch.rand(KEYS - 2, generator=generator) * 10
    real["k"] = real["k"][None, None]
    inputs = {name: encode(x.double(), rings[name], 8) for name, x in real.items()}
    q, k, v = (decode(inputs[name], rings[name], 8).double() for name in "qkv")
    inputs["residual"] = torch.zeros(rows, SIZE, dtype=torch.int64)
    assert circle.parts == 2 and not circle.asked
    return b.finish(), inputs, ((q @ k).softmax(-1) @ v)[0, 0], 2.0**-8


@pytest.mark.parametrize(("above", "below", "step"), RANGES)
def test_rows_of_every_size(above: float, below: float, step: int) -> None:
    """From the least sum to the largest, on both sides of where one part takes over from the other."""
    rows = 96
    program, inputs, want, unit = attention(above, below, rows)
    types, circle = STYLE.attention(bounds_of(above, below), ENCODER, KEYS)
    assert 1 << circle.log_unit == step
    run = run_mpc(program, inputs, {})
    assert int(run.outputs[GUARD].abs().max()) == 0
    wire = program.outputs["context"]
    assert wire.frac == 8
    got = decode(run.outputs["context"], wire.ring, wire.frac).double().reshape(rows, SIZE)
    plain = decode(run_plain(program, inputs, {})["context"], wire.ring, wire.frac).double().reshape(rows, SIZE)
    # A row's E is off by the dealt factor's rounding, up to e^step times 2^-dealt_frac / 2, evenly, in all keys, of its
    # sum 2^-octaves at least; both of its sums six deviations off. By the public factor's a probability changes by p (1
    # - p) of 2^-(public_frac + 1), so that values at opposite ends move the context by half of that times what they
    # differ by; and so it does by a score's rounding, twice. 1 / sum as stated, three truncations.
    dealt = types.exponential
    deviation = math.exp(step) / math.sqrt(2 * step) * 2.0 ** (circle.octaves - dealt.dealt_frac) / math.sqrt(12)
    inverse = 2 / (FIRST << LOW) + 1 / (16 * FIRST**2) + 1.5 / (1 << DIGITS)
    rounded = 2.0 ** -(dealt.public_frac + 1) + 2.0 ** (1 - circle.frac)
    for found, noise in ((got, 12 * math.sqrt(KEYS) * deviation), (plain, 0.0)):
        assert float((found - want).abs().max()) < BOUND * (noise + rounded + inverse) + 3 * unit
    # most rows are far from the worst; with a maximum the root of the mean square is 0.0017. Not derived
    assert float((got - want).square().mean().sqrt()) < 0.006


def test_the_parts_of_an_inverse() -> None:
    """One of them is 1 / v, to what `inverse` states, the other one is 0; over 36 octaves."""
    lo, hi = 2.0**-35, 1.2
    v = torch.logspace(-34.99, 0.26, 2000, base=2.0, dtype=torch.float64)
    b = Builder()
    b.layer("inverse")
    parts, _ = reciprocal_in_parts(b, b.input("v", 56, 46, (len(v),), hi), lo, hi)
    for i, part in enumerate(parts):
        b.output(str(i), part.y)
    run = run_mpc(b.program, {"v": encode(v, 56, 46)}, {})
    assert run.ledgers[0].total("online").rounds == b.program.cost().rounds
    ys = [decode(run.outputs[str(i)], part.y.ring, part.y.frac).double() for i, part in enumerate(parts)]
    coarse, fine = (y != 0 for y in ys)
    assert torch.equal(coarse, ~fine) and 0.4 < float(coarse.double().mean()) < 0.6
    for found, part in zip((coarse, fine), parts, strict=True):
        assert float(v[found].min()) >= part.limits[0] and float(v[found].max()) <= part.limits[1]
    error = sum(ys) * v - 1
    assert float(error.abs().max()) < 2 / (FIRST << LOW) + 1 / (16 * FIRST**2) + 1.5 / (1 << DIGITS)


def test_a_sum_beyond_its_range_is_marked() -> None:
    """As many scores as high as the bound as there are keys."""
    program, inputs, *_ = attention(20.0, 31.3, 8)
    inputs["k"][0, 0, 0] = inputs["k"][0, 0, 0, 1]
    assert int(run_mpc(program, inputs, {}).outputs[GUARD].abs().max()) != 0


def attention_cost(layer: LayerRanges, keys: int, choices: Choices) -> Cost:
    """Of projection, scores, softmax and context in BERT-base's shape, up to the opening that the next layer reads."""
    style, bounds = preset_of("ditto").style.chosen(choices), attention_of(layer)
    b = Builder()
    b.layer("attention")
    x = b.input("x", RESULT.ring, RESULT.frac, (keys, 768), 8.0)
    residual = b.input("residual", RESIDUAL.ring, RESIDUAL.frac, (keys, 768), 8.0)
    heads = style.heads(b, b.open(x)[0], "qkv", 12, 1, bounds, ENCODER)
    b.output("context", style.attend(b, heads, bounds, residual, ENCODER))
    return scheduled(b.finish()).cost()


def test_cost_with_real_ranges() -> None:
    """all-mpnet-base-v2's layers with 128 tokens: three rounds less each than with buckets by parities. E, values and
    context take 22 bits and one for each octave, 28.5 on average, in the place of 32, 32 and 24, and twice the
    reciprocals of a row: 0.95 MB more from each party, of which the parities' words were 0.07. The exponential's tables
    take 8 or 16 entries of 8 bytes for 4, 6.3 or 18.9 MB; the reciprocals' and the second product of the context 10 MB
    more. With 512 tokens: two rounds less than with buckets by counts."""
    layers = layer_ranges(read_json(MPNET))
    more = Cost()
    for layer in layers:
        parities, windows = (attention_cost(layer, 128, Choices(used=used)) for used in ("bits", "two windows"))
        assert parities.rounds - windows.rounds == 3
        more += Cost(0, windows.online - parities.online, windows.dealer - parities.dealer)
    assert more.online < 12 * 0.95e6
    assert more.dealer < 12 * (6.3e6 + 10e6) + 12.6e6
    for layer in layers:
        table, windows = (attention_cost(layer, 512, Choices(used=used)) for used in ("table", "two windows"))
        assert table.rounds - windows.rounds == 2


@pytest.mark.parametrize("above", [8.0, 12.0, 17.0, 22.0])
def test_all_stages_of_a_text_have_one_type_of_values(above: float) -> None:
    """Whatever the number of keys: with a maximum or without, in two windows or none."""
    rings = {
        STYLE.attention(bounds_of(above, 20.0), stage, keys)[0].values
        for stage in (CAUSAL, LATER, Stage(causal=True, narrow=True), Stage(causal=True, later=True, narrow=True))
        for keys in (1, 4, 32, 128, 1000)
    }
    assert len(rings) == 1
    assert max(rings) > 36


@pytest.mark.parametrize("ring, bits", [(20, 20), (32, 32), (33, 32), (45, 32)])
def test_high_bits_are_watched_on_any_ring(ring: int, bits: int) -> None:
    """By the highest of them, where the guard does not watch all."""
    b = Builder(guards=True)
    b.layer("one")
    (opened,) = b.open(b.affine(b.input("x", 50, 10, (3,), 1.0), 1, 0.0, 10, bound=1.0))
    b.high(opened, 50 - ring, ring, 1.0, watched=True)
    highs = {out: step.op for step in b.program.steps for out in step.outputs if isinstance(step.op, HighBits)}
    watched = [highs[step.inputs[1]] for step in b.program.steps if isinstance(step.op, Guard)]
    assert [(op.shift, op.out) for op in watched if op.bits == 50] == [(50 - bits, bits)]

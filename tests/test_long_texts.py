"""Attention over texts as long as models take: the sums outgrow what fewer tokens need."""

from __future__ import annotations

import pytest
import torch
from engine import run_mpc

from ditto.engine.plain import run_plain
from ditto.engine.program import GUARD, Builder, Program
from ditto.errors import RangeError
from ditto.functions.inverse import DIGITS, FIRST, LOW
from ditto.functions.softmax import ScoreType
from ditto.ops import Matmul, Open
from ditto.ops.base import Shape
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.presets.style import ENCODER, AttentionBounds, Heads, Scores, Stage, Style
from ditto.ring import signed
from ditto.ring.fixedpoint import decode, encode

BOUND, SIZE, QUERIES = 12.0, 4, 3
CONTEXT = 3.0
SCORES = Scores(8.0, 6.0, 6.0, 12.0)
# What functions/inverse.py states: two carries into v, the line, and the smallest result's digits. The errors of the
# exponentials are in the sum, too, and but for values that differ (by a twelfth here) they cancel.
INVERSE = 2 / (FIRST << LOW) + 1 / (16 * FIRST**2) + 1.5 / (1 << DIGITS)
LAST = 2  # the sum's truncation and the residual's


def attention(style: Style, bounds: AttentionBounds, n: int) -> tuple[Program, dict[str, Shape], dict[str, int]]:
    """One head of QUERIES queries and n keys: the program, watched, shapes and rings of its inputs."""
    b = Builder(guards=True)
    b.layer("attention")
    shapes: dict[str, Shape] = {"q": (1, 1, QUERIES, SIZE), "k": (1, 1, SIZE, n), "v": (1, 1, n, SIZE)}
    rings = {"q": 24, "k": 24, "v": style.attention(bounds, ENCODER, n)[0].values}
    q, k, v = b.open(*(b.input(name, rings[name], 8, shape, BOUND) for name, shape in shapes.items()))
    residual = b.input("residual", 24, 12, (QUERIES, SIZE), 1.0)
    b.output("context", style.attend(b, Heads(q, k, v), bounds, residual, ENCODER))
    return b.finish(), shapes, rings


@pytest.mark.parametrize("used", ["bits", "no maximum"])
@pytest.mark.parametrize("exponential", ["precise", "narrow"])
@pytest.mark.parametrize("n", [128, 512])
def test_values_near_their_bound(n: int, exponential: str, used: str) -> None:
    """Sums of n exponentials times values, on shares: as the plain interpreter has them, and as floats have them."""
    torch.manual_seed(0)
    style = preset_of("ditto").style.chosen(Choices.model_validate({"exponential": exponential, "used": used}))
    program, shapes, rings = attention(style, AttentionBounds(BOUND, SCORES, BOUND), n)
    real = {"q": torch.rand(shapes["q"]), "k": torch.rand(shapes["k"]), "v": BOUND - torch.rand(shapes["v"])}
    real["k"][..., 0] = 0  # scores are less that of the first key
    inputs = {name: encode(x.double(), rings[name], 8) for name, x in real.items()}
    inputs["residual"] = torch.zeros(QUERIES, SIZE, dtype=torch.int64)
    run = run_mpc(program, inputs, {})
    wire = program.outputs["context"]
    plain = run_plain(program, inputs, {})["context"]
    unit = 2.0**-wire.frac
    apart = int((signed(run.outputs["context"], wire.ring) - plain).abs().max())
    assert apart * unit <= 2 * INVERSE * BOUND + LAST * unit  # 40 units; in 60 runs of each case at most 14
    want = (real["q"] @ real["k"]).softmax(-1) @ real["v"]
    got = decode(run.outputs["context"], wire.ring, wire.frac).reshape(QUERIES, SIZE)
    assert float((got - want[0, 0]).abs().max()) <= INVERSE * BOUND + LAST * unit  # 0.11; measured: 0.04


@pytest.mark.parametrize(("above", "score", "value", "ring"), [(3.9, 3.9, 12.0, 32), (10.9, 7.4, 8.0, 41)])
def test_a_context_beyond_its_bound_is_marked(above: float, score: float, value: float, ring: int) -> None:
    """On a ring by the bound of the context and not by that of values, whether it is watched whole or by 32 bits of it.

    All of 128 values but the first are as large as their bound allows, or as that of the context does. With a maximum
    E is e^-0.1 for all of these, their sum 115, 1.1 times 128 at most. Without: one is e^-0.2, the others e^-3.7, in
    all 3.9, 5.5 at most."""
    bounds = AttentionBounds(value, Scores(20.0, above, 8.0, 20.0), CONTEXT)
    style = preset_of("ditto").style.chosen(Choices(used="bits" if score == above else "no maximum"))
    program, shapes, rings = attention(style, bounds, 128)
    assert rings["v"] == ring
    for most, marked in ((CONTEXT, False), (value, True)):
        real = {"q": torch.ones(shapes["q"]), "k": torch.full(shapes["k"], score / SIZE)}
        real["k"][..., 0], real["k"][..., 1] = 0.0, above / SIZE
        inputs = {name: encode(x.double(), rings[name], 8) for name, x in real.items()}
        inputs["v"] = torch.full(shapes["v"], int(most * 256))
        inputs["residual"] = torch.zeros(QUERIES, SIZE, dtype=torch.int64)
        assert bool(run_plain(program, inputs, {})[GUARD].any()) == marked


def test_types_of_an_attention_by_its_ranges() -> None:
    """Values, E and context of 32 bits for contexts up to 3 and 128 keys, E of 13 fraction bits; 34 for 512 keys. A
    causal attention has the type of its cache. Scores have 8 fraction bits, as far as 16 bits have room."""
    style = preset_of("ditto").style
    scores = Scores(21.3, 23.9, 27.3, 27.3)
    for stage, keys, ring in ((ENCODER, 128, 32), (ENCODER, 512, 34), (Stage(causal=True), 128, 36)):
        types, circle = style.attention(AttentionBounds(BOUND, scores, 3.0), stage, keys)
        assert (types.values, circle.ring, circle.frac) == (ring, 14, 8)
    for below, bits, frac in ((60.0, 15, 8), (120.0, 16, 8), (250.0, 16, 7)):
        circle = ScoreType.of(23.9, below, below)
        assert (circle.ring, circle.frac) == (bits, frac)


def test_a_product_of_what_was_opened_on_fewer_bits_is_refused() -> None:
    """Its mask is gone only on the ring where it was opened."""
    b = Builder()
    b.layer("product")
    x, y = b.open(b.input("x", 35, 8, (2, 2), 1.0), b.input("y", 36, 8, (2, 2), 1.0))
    with pytest.raises(RangeError, match="36 bits"):
        b.emit(Matmul((2, 2), (2, 2), 36), [x, y], [(36, 16, (2, 2), 2.0)])
    assert isinstance(b.program.steps[-1].op, Open)

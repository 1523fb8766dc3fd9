"""Attention over texts as long as models take: the sums outgrow what fewer tokens need."""

from __future__ import annotations

import pytest
import torch
from engine import run_mpc

from ditto.engine.plain import run_plain
from ditto.engine.program import Builder
from ditto.errors import RangeError
from ditto.functions.inverse import DIGITS, FIRST, LOW
from ditto.ops import Matmul, Open
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.presets.style import ENCODER, AttentionBounds, Heads, Scores
from ditto.ring import signed
from ditto.ring.fixedpoint import decode, encode

BOUND, SIZE, QUERIES = 12.0, 4, 3
SCORES = Scores(8.0, 6.0, 6.0, 12.0)
# What functions/inverse.py states: two carries into v, the line, and the smallest result's digits. The errors of the
# exponentials are in the sum, too, and but for values that differ (by a twelfth here) they cancel.
INVERSE = 2 / (FIRST << LOW) + 1 / (16 * FIRST**2) + 1.5 / (1 << DIGITS)
LAST = 2  # the sum's truncation and the residual's


@pytest.mark.parametrize("used", ["bits", "no maximum"])
@pytest.mark.parametrize("exponential", ["precise", "narrow"])
@pytest.mark.parametrize("n", [128, 512])
def test_values_near_their_bound(n: int, exponential: str, used: str) -> None:
    """Sums of n exponentials times values, on shares: as the plain interpreter has them, and as floats have them."""
    torch.manual_seed(0)
    style = preset_of("ditto").style.chosen(Choices.model_validate({"exponential": exponential, "used": used}))
    b = Builder()
    b.layer("attention")
    shapes = {"q": (1, 1, QUERIES, SIZE), "k": (1, 1, SIZE, n), "v": (1, 1, n, SIZE)}
    bounds = AttentionBounds(BOUND, SCORES, BOUND)
    rings = {"q": 24, "k": 24, "v": style.attention(bounds, ENCODER, n)[0].values}
    q, k, v = b.open(*(b.input(name, rings[name], 8, shape, BOUND) for name, shape in shapes.items()))
    residual = b.input("residual", 24, 12, (QUERIES, SIZE), 1.0)
    b.output("context", style.attend(b, Heads(q, k, v), bounds, residual, ENCODER))
    program = b.finish()
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


def test_a_product_of_what_was_opened_on_fewer_bits_is_refused() -> None:
    """Its mask is gone only on the ring where it was opened."""
    b = Builder()
    b.layer("product")
    x, y = b.open(b.input("x", 35, 8, (2, 2), 1.0), b.input("y", 36, 8, (2, 2), 1.0))
    with pytest.raises(RangeError, match="36 bits"):
        b.emit(Matmul((2, 2), (2, 2), 36), [x, y], [(36, 16, (2, 2), 2.0)])
    assert isinstance(b.program.steps[-1].op, Open)

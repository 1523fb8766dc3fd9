"""The index of the largest entry under MPC: exact, the first of equals, with its rounds and bytes."""

from __future__ import annotations

import pytest
import torch
from test_functions import evaluate

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.argmax import FANS, argmax
from ditto.ops import Cost

Tensor = torch.Tensor


def rows(count: int, width: int, limit: float, frac: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    x = (torch.rand((count, width), generator=generator, dtype=torch.float64) * 2 - 1) * limit
    return torch.round(x * 2**frac) / 2**frac


def check(x: Tensor, ring: int, frac: int, bound: float, fans: tuple[int, ...] = FANS) -> None:
    y, _ = evaluate(x, ring, frac, bound, lambda b, w: argmax(b, w, fans))
    first = [row.index(max(row)) for row in x.tolist()]
    assert y.tolist() == first


@pytest.mark.parametrize("fans", [FANS, (2,), (3,), (5, 9), (2, 4)])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 131])
def test_random_rows(width: int, fans: tuple[int, ...]) -> None:
    check(rows(3, width, 60, 8), 16, 8, 63.0, fans)


@pytest.mark.parametrize(("ring", "frac"), [(8, 0), (12, 2), (16, 8), (24, 12), (32, 12), (64, 18)])
def test_every_ring_up_to_its_bound(ring: int, frac: int) -> None:
    bound = 2.0 ** (ring - 2 - frac)
    x = rows(4, 50, bound - 1, frac)
    x[0] = -x[0].abs() - 2.0**-frac
    x[1, 17], x[1, 3] = bound - 2.0**-frac, -bound  # the largest difference that fits
    check(x, ring, frac, bound, (4, 8))


@pytest.mark.parametrize("fans", [FANS, (2,), (4,)])
def test_the_first_of_equals_wins(fans: tuple[int, ...]) -> None:
    x = rows(5, 301, 20, 6)
    x[0] = 3.0
    x[1, 1::2] = 21.0
    x[2, [40, 300]] = 21.0
    x[3, [298, 299]] = 21.0  # in the window that overlaps another
    x[4] = -21.0
    check(x, 16, 6, 30.0, fans)


def test_the_largest_at_every_place() -> None:
    """Whatever wins, its own index comes back: the largest walks through all windows of two levels."""
    check(torch.eye(83, dtype=torch.float64), 16, 8, 1.0, (4, 8, 16))


def test_a_thousand() -> None:
    check(rows(2, 1000, 100, 5), 16, 5, 128.0)


def cost(width: int, ring: int, fans: tuple[int, ...] = FANS) -> Cost:
    b = Builder()
    b.layer("layer")
    b.label("argmax")
    y = argmax(b, b.input("x", ring, 0, (1, width), 2.0 ** (ring - 2)), fans)
    assert (y.ring, y.frac, y.shape) == (32, 0, (1,))
    return b.program.cost()


def test_cost_on_the_vocabulary_of_gpt2() -> None:
    """What the docstring states, on 16 bits; pairs alone would take 64 rounds."""
    wide = cost(50257, 16)
    assert wide.rounds == 18 and wide.online < 0.5e6 and wide.dealer < 3.3e6
    assert cost(50257, 16, (2,)).rounds == 64
    assert cost(50257, 32).rounds == 21
    assert cost(2, 16) == cost(2, 16, (2,)) and cost(2, 16).rounds == 4
    assert cost(1, 16) == Cost()


def test_a_bound_without_room_for_differences_is_refused() -> None:
    b = Builder()
    b.layer("layer")
    x: Wire = b.input("x", 16, 8, (1, 10), 65.0)
    with pytest.raises(RangeError, match="headroom"):
        argmax(b, x)

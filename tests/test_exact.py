"""Numbers that are the same on every processor: against fractions and decimals, and in processes that differ."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto.ring.exact import ceil_log2, floor_log2

TINY, HUGE = math.ulp(0.0), math.nextafter(math.inf, 0.0)


@given(st.floats(TINY, HUGE))
def test_logarithms(x: float) -> None:
    low, high, exact = floor_log2(x), ceil_log2(x), Fraction(x)
    assert Fraction(2) ** low <= exact < Fraction(2) ** (low + 1)
    assert Fraction(2) ** (high - 1) < exact <= Fraction(2) ** high


@pytest.mark.parametrize("k", [-1074, -1023, -1022, -53, -1, 0, 1, 52, 53, 1000, 1023])
def test_logarithms_beside_a_power_of_two(k: int) -> None:
    x = math.ldexp(1.0, k)
    assert (floor_log2(x), ceil_log2(x)) == (k, k)
    above = math.nextafter(x, math.inf)
    assert (floor_log2(above), ceil_log2(above)) == ((k, k + 1) if above < 2 * x else (k + 1, k + 1))
    below = math.nextafter(x, 0.0)
    if below > 0:
        assert (floor_log2(below), ceil_log2(below)) == ((k - 1, k) if below > x / 2 else (k - 1, k - 1))


@pytest.mark.parametrize("x", [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan])
def test_no_logarithm(x: float) -> None:
    for logarithm in (floor_log2, ceil_log2):
        with pytest.raises(ValueError, match="positive and finite"):
            logarithm(x)

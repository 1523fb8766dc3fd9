"""Numbers that are the same on every processor: against exact ones, and in processes that compute differently."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditto.ops import Exponential, Harmonic
from ditto.ring.exact import ceil_log2, circle, exponentials, floor_log2

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


@pytest.mark.parametrize("n", [2, 3, 12])
def test_circle(n: int) -> None:
    """Each float64 is the nearest to the true value."""
    cos, sin = circle(n)
    with mpmath.workprec(200):
        angles = [mpmath.mpf(j) / 2 ** (n - 1) for j in range(1 << n)]
        assert cos.tolist() == [float(mpmath.cospi(x)) for x in angles]
        assert sin.tolist() == [float(mpmath.sinpi(x)) for x in angles]


def test_circle_of_few_points() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        circle(1)


@pytest.mark.parametrize(("frac", "count"), [(8, 2048), (13, 1000), (0, 20), (5, 1)])
def test_exponentials(frac: int, count: int) -> None:
    """Each float64 is the nearest to the true value."""
    with mpmath.workprec(200):
        assert exponentials(frac, count).tolist() == [float(mpmath.exp(mpmath.mpf(j) / 2**frac)) for j in range(count)]


def test_public_tables_are_those_of_floating_point() -> None:
    """To one unit, which a tie makes."""
    a, b = (0.5, -1.25, 0.0, 0.3), (0.0, 0.75, -0.2, 0.0)
    got = Harmonic((1,), 12, 32, 11, 10, 0.0, a, b)._public
    angle = torch.outer(torch.arange(4096.0), torch.arange(1.0, 5.0)).double() * (2 * math.pi / 4096)
    c, s, u, t = angle.cos(), angle.sin(), torch.tensor(a).double(), torch.tensor(b).double()
    want = torch.cat([u * c + t * s, u * s - t * c], 1) * 2**11
    assert (got - want).abs().max() <= 0.5 + 1e-6
    exponential = Exponential((1,), 16, 8, 11, -2, -1, 64, 10, 27)._public
    assert (exponential - (torch.arange(2048.0).double() / 256).exp() * 2**10).abs().max() <= 0.5 + 1e-6


TABLES = """
import hashlib
import math
import torch
from ditto.ops import Exponential, Harmonic
from ditto.ring.exact import circle, exponentials

tables = [part for n in range(2, 14) for part in circle(n)]
tables += [exponentials(8, 2048), exponentials(13, 4096)]
for count in (1, 8, 32):
    cos, sin = ([(-1) ** k * scale / (k + 3) for k in range(count)] for scale in (1.7, 0.9))
    tables += [Harmonic((1,), 12, 64, fu, 10, 0.1, tuple(cos), tuple(sin))._public for fu in (8, 11, 50)]
tables += [Exponential((1,), 16, frac, frac + 3, -2, -1, 64, fu, 27)._public for frac in (5, 8) for fu in (7, 10, 48)]
digest = hashlib.sha256(b"".join(table.numpy().tobytes() for table in tables)).hexdigest()
"""
# Fewer vector instructions for torch, for both linear algebra libraries and for the C library (by either of its names)
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Nehalem",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable",
}
OTHER = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Sandybridge", "MKL_CBWR": "COMPATIBLE"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize(
    "environment",
    [PLAIN, OTHER, pytest.param(AVX2, marks=pytest.mark.skipif(not HAS_AVX2, reason="no AVX2 on this processor"))],
    ids=["plain", "other", "avx2"],
)
def test_public_tables_are_the_same_on_every_processor(environment: dict[str, str]) -> None:
    here: dict[str, str] = {}
    exec(TABLES, here)
    code = TABLES + "print(digest)"
    root = str(Path(__file__).parents[1])
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"PYTHONPATH": root},
        check=True,
        capture_output=True,
    )
    assert there.stdout.decode().strip() == here["digest"]

"""Functions of the published recipes under MPC against float64 (and against what their papers compute)."""

from __future__ import annotations

import math

import pytest
import torch
from test_functions import evaluate

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.exponential_published import exponential
from ditto.functions.fixed import CRYPTEN, FXP32, FXP64, FixedPoint, convert, truncate_to
from ditto.functions.gelu_published import (
    FOURIER_EDGE,
    FOURIER_ERF,
    PUMA_LOW,
    PUMA_MID,
    fourier_gelu,
    puma_gelu,
    quad_gelu,
)
from ditto.functions.inverse_published import (
    deflated_reciprocal,
    deflated_rsqrt,
    goldschmidt_reciprocal,
    newton_reciprocal,
    newton_rsqrt,
    polynomial_rsqrt,
)
from ditto.functions.layernorm_published import recipe_layernorm
from ditto.functions.maximum_published import maximum
from ditto.functions.softmax_published import exact_softmax, quad_softmax

Tensor = torch.Tensor


def grid(lo: float, hi: float, n: int = 1201) -> Tensor:
    return torch.linspace(lo, hi, n, dtype=torch.float64).reshape(1, -1)


def octaves(lo: float, hi: float, n: int = 600) -> Tensor:
    return torch.logspace(math.log10(lo), math.log10(hi), n, dtype=torch.float64).clamp(lo, hi).reshape(-1, 1)


@pytest.mark.parametrize(("ring", "frac"), [(24, 8), (46, 18), (48, 16)])
@pytest.mark.parametrize("n", [2, 7, 16])
def test_maximum_is_exact(ring: int, frac: int, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.round((torch.rand((2, 5, n), generator=generator, dtype=torch.float64) - 0.5) * 200 * 2**frac) / 2**frac
    x[0, 0] = 17.0  # all equal
    x[0, 1, -1] = 100.0  # the last one, which an odd row compares twice
    y, run = evaluate(x, ring, frac, 128.0, maximum)
    assert torch.equal(y, x.amax(-1, keepdim=True))
    levels = math.ceil(math.log2(n))
    assert run.ledgers[0].total("online").rounds == levels * (2 + math.ceil(math.log2(math.ceil((ring - 1) / 4))))


def test_exponential_by_the_limit() -> None:
    x = grid(-40.0, 0.0)
    clipped, _ = evaluate(x, 46, 18, 40.0, lambda b, w: exponential(b, w, FXP64, 5, -14.0))
    want = torch.where(x < -14, 0.0, (1 + x.clamp(min=-14) / 32) ** 32)
    assert (clipped - want).abs().max() < 32 * 2.0**-18
    assert (want - x.exp()).abs().max() < 0.01  # what the limit itself costs
    from_fxp32, _ = evaluate(torch.round(x * 256) / 256, 24, 8, 40.0, lambda b, w: exponential(b, w, FXP64, 5, -14.0))
    assert (from_fxp32 - want).abs().max() < 0.005
    open_ended, _ = evaluate(x / 4, 48, 16, 10.0, lambda b, w: exponential(b, w, CRYPTEN, 8))
    assert (open_ended - (x / 4).exp()).abs().max() < 0.01


def test_goldschmidt_reciprocal() -> None:
    v = octaves(1.0, 129.0)
    y, _ = evaluate(v, 46, 18, 129.3, lambda b, w: goldschmidt_reciprocal(b, w, 1.0, 129.3, FXP64))
    assert (y * v - 1).abs().max() < 129 * 2.0**-17 + 1e-4


@pytest.mark.parametrize(("lo", "hi"), [(0.01, 0.3), (0.05, 160.0), (1.0, 1.9)])
def test_polynomial_rsqrt(lo: float, hi: float) -> None:
    v = octaves(lo, hi)
    y, _ = evaluate(v, 40, 18, hi, lambda b, w: polynomial_rsqrt(b, w, lo, hi, FXP64))
    assert (y * v.sqrt() - 1).abs().max() < 2e-3


def test_newton_inverses_of_crypten() -> None:
    v = octaves(0.5, 240.0)
    y, _ = evaluate(v, 48, 16, 240.0, lambda b, w: newton_reciprocal(b, w, 240.0, CRYPTEN))
    assert (y * v - 1).abs().max() < 240 * 2.0**-13
    v = octaves(0.2, 100.0)
    y, _ = evaluate(v, 48, 16, 100.0, lambda b, w: newton_rsqrt(b, w, 100.0, CRYPTEN))
    near = v < 20
    assert ((y * v.sqrt() - 1)[near]).abs().max() < 0.02  # three steps are few: CrypTen's own error grows with v
    with pytest.raises(RangeError, match="diverges"):
        evaluate(v, 48, 16, 300.0, lambda b, w: newton_reciprocal(b, w, 300.0, CRYPTEN))
    with pytest.raises(RangeError, match="diverges"):
        evaluate(v, 48, 16, 300.0, lambda b, w: newton_rsqrt(b, w, 300.0, CRYPTEN))


def test_goldschmidt_inverses_of_secformer() -> None:
    v = octaves(2.0, 250.0)
    y, _ = evaluate(v, 48, 16, 250.0, lambda b, w: deflated_reciprocal(b, w, 256.0, CRYPTEN))
    assert (y * v - 1).abs().max() < 0.02  # v / 256 keeps 9 bits at the low end
    v = octaves(0.5, 60.0)
    y, _ = evaluate(v, 48, 16, 60.0, lambda b, w: deflated_rsqrt(b, w, 64.0, CRYPTEN))
    assert (y * v.sqrt() - 1).abs().max() < 0.01
    v = octaves(0.01, 0.2)
    y, _ = evaluate(v, 48, 16, 0.2, lambda b, w: deflated_rsqrt(b, w, 0.25, CRYPTEN))
    assert (y * v.sqrt() - 1).abs().max() < 0.01


def test_puma_gelu() -> None:
    x = grid(-30.0, 30.0, 6001)
    y, _ = evaluate(x, 46, 18, 30.0, lambda b, w: puma_gelu(b, w, FXP64))
    low = sum(c * x**i for i, c in enumerate(PUMA_LOW))
    mid = sum(c * x**i for i, c in enumerate(PUMA_MID))
    want = torch.where(x < -4, 0.0, torch.where(x < -1.95, low, torch.where(x < 3, mid, x)))
    inside = ((x + 4).abs() > 1e-3) & ((x + 1.95).abs() > 1e-3) & ((x - 3).abs() > 1e-3)
    assert (y - want)[inside].abs().max() < 1e-3
    assert (y - torch.nn.functional.gelu(x)).abs().max() < 0.02


def test_quad_gelu_in_both_types() -> None:
    x = torch.round(grid(-25.0, 25.0) * 256) / 256
    want = 0.125 * x**2 + 0.25 * x + 0.5
    for fxp in (FXP32, FXP64, CRYPTEN):
        y, run = evaluate(x, fxp.ring - fxp.frac, fxp.frac, 25.0, lambda b, w, fxp=fxp: quad_gelu(b, w, fxp))
        assert (y - want).abs().max() <= 1.5 * 2.0**-fxp.frac
        assert run.ledgers[0].total("online").rounds == 1


def test_type_conversions_between_fxp32_and_fxp64() -> None:
    x = torch.round(grid(-4000.0, 4000.0) * 256) / 256
    up, run = evaluate(x, 24, 8, 4000.0, lambda b, w: convert(b, w, FXP64))
    assert torch.equal(up, x) and run.ledgers[0].total("online").rounds == 1
    back, run = evaluate(x, 64, 18, 4000.0, lambda b, w: convert(b, w, FXP32))
    assert (back - x).abs().max() <= 2.0**-8 and run.ledgers[0].total("online").rounds == 0


def test_fourier_coefficients_of_erf() -> None:
    n = 20000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) * (10.0 / n)
    for k, coefficient in enumerate(FOURIER_ERF, 1):
        wave = torch.sin(k * math.pi * t / 10.0)
        assert abs(coefficient - float(0.2 * (t.erf() * wave).sum() * (10.0 / n))) < 1e-8


def test_fourier_gelu() -> None:
    assert FOURIER_ERF[:2] == pytest.approx((1.25772, -0.0299154), abs=2e-3)  # as SecFormer prints them
    x = grid(-12.0, 12.0, 3001)
    y, _ = evaluate(x, 48, 16, 12.0, lambda b, w: fourier_gelu(b, w, CRYPTEN))
    t = x / math.sqrt(2)
    sines = sum(c * torch.sin((k + 1) * math.pi * t / 10) for k, c in enumerate(FOURIER_ERF))
    erf = torch.where(t < -FOURIER_EDGE, -1.0, torch.where(t < FOURIER_EDGE, sines, 1.0))
    want = x / 2 * (1 + erf)
    inside = (t.abs() - FOURIER_EDGE).abs() > 1e-3
    assert (y - want)[inside].abs().max() < 0.01
    assert (want - torch.nn.functional.gelu(x)).abs().max() < 0.05


@pytest.mark.parametrize(("ring", "frac", "out"), [(24, 8, FXP32), (46, 18, FXP64)])
def test_exact_softmax_with_masked_positions(ring: int, frac: int, out: FixedPoint) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((2, 8, 16), generator=generator, dtype=torch.float64) * 6
    x[0, 0], x[0, 1, 3] = -20.0, 24.0
    x[:, :, 12:] -= 70.0
    x = torch.round(x * 2**frac) / 2**frac

    def function(b: Builder, w: Wire) -> Wire:
        return exact_softmax(b, w, FXP64, out, lambda b, v, lo, hi: goldschmidt_reciprocal(b, v, lo, hi, FXP64))

    y, _ = evaluate(x, ring, frac, 100.0, function)
    e = torch.where((d := x - x.amax(-1, keepdim=True)) < -14, 0.0, (1 + d.clamp(min=-14) / 32) ** 32)
    assert (y - e / e.sum(-1, keepdim=True)).abs().max() < 1.5 * 2.0**-frac + 1e-3
    assert y[:, :, 12:].abs().max() <= 2.0**-frac  # a rounding at most


@pytest.mark.parametrize("deflated", [False, True])
def test_quad_softmax_counts_what_is_kept(deflated: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((1, 2, 8, 16), generator=generator, dtype=torch.float64) * 2
    keep = torch.ones((1, 1, 16, 1), dtype=torch.float64)
    keep[:, :, 12:] = 0

    def inverse(b: Builder, v: Wire, hi: float) -> Wire:
        if deflated:
            return deflated_reciprocal(b, v, 256.0, CRYPTEN)
        return newton_reciprocal(b, v, hi, CRYPTEN)

    def function(b: Builder, w: Wire) -> Wire:
        (kept,) = b.open(b.weight("x.keep", 64, 0, (1, 1, 16, 1), "share"))
        return quad_softmax(b, w, kept, CRYPTEN, inverse)

    y, _ = evaluate(x, 48, 16, 12.0, function, keep=keep)
    q = (x + 5) ** 2
    want = q / (q[..., :12].sum(-1, keepdim=True))
    assert (y - want).abs().max() < 0.01


@pytest.mark.parametrize(("frac", "out"), [(8, FXP32), (18, FXP64)])
def test_recipe_layernorm(frac: int, out: FixedPoint) -> None:
    generator = torch.Generator().manual_seed(1)
    width = 384
    x = torch.randn((12, width), generator=generator, dtype=torch.float64) * torch.logspace(-0.5, 0.7, 12)[:, None]
    x[5] += 2.0
    x = torch.round(x * 2**frac) / 2**frac
    var = x.var(1, unbiased=False)
    gamma = 1 + 0.1 * torch.randn(width, generator=generator, dtype=torch.float64)
    beta = 0.1 * torch.randn(width, generator=generator, dtype=torch.float64)
    scale = (width / 2.0 ** round(math.log2(width))) ** 0.5

    def function(b: Builder, w: Wire) -> Wire:
        return recipe_layernorm(
            b, truncate_to(b, w, frac, 64 - frac), "norm", (float(var.min()) / 2, float(var.max()) * 2), 1e-12, 40.0,
            FXP64, out, lambda b, v, lo, hi: polynomial_rsqrt(b, v, lo, hi, FXP64),
        )  # fmt: skip

    y, _ = evaluate(x, 24 if frac == 8 else 46, frac, 60.0, function, gamma=gamma * scale, beta=beta)
    want = torch.nn.functional.layer_norm(x, (width,), gamma, beta, 1e-12)
    assert (y - want).abs().max() < 1.5 * 2.0**-frac + 0.01

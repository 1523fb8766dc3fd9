"""Functions under MPC against float64, on real-sized ranges, with their rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine import Run, run_mpc

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions import ScoreType, gelu, inverse_power, layernorm, softmax_numerator, tanh
from ditto.functions.layernorm import types
from ditto.functions.softmax import reciprocal_of_sum
from ditto.ring.fixedpoint import decode, encode

Tensor = torch.Tensor


def evaluate(
    x: Tensor, ring: int, frac: int, bound: float, function: Callable[[Builder, Wire], Wire], **weights: Tensor
) -> tuple[Tensor, Run]:
    """Run one function under MPC; check that the ledger equals the program's cost; return reals."""
    b = Builder()
    b.layer("layer")
    b.label("function")
    y = function(b, b.input("x", ring, frac, tuple(x.shape), bound))
    b.output("y", y)
    encoded = {n: encode(weights[n.split(".")[1]], w.ring, w.frac) for n, w in b.program.weights.items()}
    run = run_mpc(b.program, {"x": encode(x, ring, frac)}, encoded)
    cost = b.program.cost()
    totals = [ledger.total("online") for ledger in run.ledgers]
    assert {(t.rounds, t.bytes_sent) for t in totals} == {(cost.rounds, cost.online)}
    assert sum(ledger.total("offline").bytes_from_dealer for ledger in run.ledgers) == cost.dealer
    return decode(run.outputs["y"], y.ring, y.frac), run


@pytest.mark.parametrize("bound", [6.0, 12.0, 27.0])
def test_gelu(bound: float) -> None:
    x = torch.linspace(-bound, bound, 4001, dtype=torch.float64).reshape(1, -1)
    y, _ = evaluate(x, 24, 12, bound, lambda b, w: gelu(b, w, bound))
    error = (y - torch.nn.functional.gelu(x)).abs()
    assert error.max() < 0.04 and error.square().mean().sqrt() < 0.012


def test_tanh() -> None:
    x = torch.linspace(-7, 7, 2001, dtype=torch.float64).reshape(1, -1)
    y, _ = evaluate(x, 24, 12, 7.0, lambda b, w: tanh(b, w, 7.0))
    assert (y - x.tanh()).abs().max() < 0.03


def test_inverse_square_root_over_fourteen_octaves() -> None:
    lo, hi = 0.01, 160.0
    v = torch.logspace(-2, 2.2, 3000, dtype=torch.float64).clamp(lo, hi).reshape(-1, 1)
    kind = types(lo, hi)

    def function(b: Builder, w: Wire) -> Wire:
        return inverse_power(b, w, lo, hi, root=True, frac=kind.y, index_bits=10)[0]

    y, _ = evaluate(v, 40, kind.v, hi, function)
    relative = (y * v.sqrt() - 1).abs()
    assert relative.max() < 0.02 and relative.mean() < 0.003


def test_reciprocal() -> None:
    limits = (0.0165, 141.0)
    v = torch.logspace(-1.8, 2.15, 3000, dtype=torch.float64).clamp(*limits).reshape(-1, 1)
    y, _ = evaluate(v, 40, 16, limits[1], lambda b, w: reciprocal_of_sum(b, w, limits)[0])
    relative = (y * v - 1).abs()
    assert relative.max() < 0.01 and relative.mean() < 0.002


@pytest.mark.parametrize("bound", [3.0, 25.0, 53.0, 110.0, 240.0])
def test_softmax_numerator_and_masking(bound: float) -> None:
    kind = ScoreType.of(bound)
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand((2, 16, 32), generator=generator, dtype=torch.float64) * 2 - 1) * bound
    x[0, 0] = -bound  # a row of equal scores at the bottom, one at the top, extremes side by side
    x[0, 1] = bound - 0.01
    x[0, 2, ::2], x[0, 2, 1::2] = bound - 0.01, -bound
    want = x.clone()
    want[:, :, 20:] = -float("inf")
    masked = x.clone()
    masked[:, :, 20:] += kind.mask
    period = 2.0**kind.log_range
    masked = torch.remainder(masked + period / 2, period) - period / 2

    def function(b: Builder, w: Wire) -> Wire:
        return softmax_numerator(b, w, kind)[0]

    e, _ = evaluate(masked, 16, kind.frac, bound, function)
    assert e[:, :, 20:].abs().max() < 1e-3
    p = e / e.sum(-1, keepdim=True)
    assert (p - want.softmax(-1)).abs().max() < 0.02
    assert e.max() <= 1.05
    assert e.sum(-1).min() > 0.9 * torch.tensor(-2 * kind.width).exp()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("width", [128, 384, 768])
def test_layernorm_with_outlier_channels(width: int, part: int) -> None:
    """Rows of mean 0; part 1 is the result less its mean, for the next residual."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((12, width), generator=generator, dtype=torch.float64) * torch.logspace(-1, 0.7, 12)[:, None]
    x[3, 7] = 180.0  # an outlier channel, as pretrained models have
    x = x - x.mean(1, keepdim=True)
    var = x.var(1, unbiased=False)
    lo, hi = float(var.min()) / 2, float(var.max()) * 2
    gamma = 1 + 0.1 * torch.randn(width, generator=generator, dtype=torch.float64)
    beta = 0.1 * torch.randn(width, generator=generator, dtype=torch.float64) + 0.5
    scale = (width / 2.0 ** round(torch.tensor(width).log2().item())) ** 0.5

    def function(b: Builder, w: Wire) -> Wire:
        return layernorm(b, w, "norm", (lo, hi), 1e-12, 40.0)[part]

    y, run = evaluate(x, 24, 12, 200.0, function, gamma=gamma * scale, beta=beta)
    assert run.ledgers[0].total("online").rounds <= 7
    want = torch.nn.functional.layer_norm(x, (width,), gamma, beta, 1e-12)
    if part == 1:
        want = want - want.mean(1, keepdim=True)
        assert y.mean(1).abs().max() < 0.002
    assert ((y - want).abs() / want.abs().clamp(min=1)).max() < 0.02


def test_bounds_that_do_not_fit_are_refused() -> None:
    b = Builder()
    b.layer("layer")
    x = b.input("x", 16, 8, (2, 2), 100.0)
    (opened,) = b.open(x)
    with pytest.raises(RangeError, match="does not fit"):
        b.extend(opened, 32)
    with pytest.raises(ValueError, match="attention scores"):
        ScoreType.of(1000.0)

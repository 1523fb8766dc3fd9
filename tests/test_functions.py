"""Functions under MPC against float64, on real-sized ranges, with their rounds."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import Run, run_mpc

from ditto import functions
from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions import ScoreType, gelu, inverse_power, layernorm, softmax_numerator, tanh
from ditto.functions.fit import Fitting
from ditto.functions.gelu import even_part, gelu_zones, tanh_gelu
from ditto.functions.layernorm import ROOT_TABLES, NormType, deviation_scale, nearest_log2, standardise
from ditto.functions.softmax import LEAST, NARROW, PRECISE, ExponentialType, reciprocal_of_sum
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
    y, _ = evaluate(x, 24, 12, bound, lambda b, w: gelu(b, w, bound, Fitting()))
    error = (y - torch.nn.functional.gelu(x)).abs()
    assert error.max() < 0.04 and error.square().mean().sqrt() < 0.012


BOUNDS = (6.0, 9.0, 24.0, 128.0)


@pytest.mark.parametrize("exact", [False, True], ids=["erf", "tanh"])
def test_gelu_by_the_range_of_each_column(exact: bool) -> None:
    """Columns of four ranges, each with its scale: as near to GELU as its fit and the roundings of its coefficients.

    A result is off by the fit's error, by its index's rounding (at most one step of T / 2^12, e' < 1), and by those of
    the harmonics, which grow with the sum of the coefficients (see `Harmonic.ulp`); the 0.02 is not derived.
    """
    function, of = (("tanh gelu", tanh_gelu), ("gelu", gelu))[not exact]
    zones = gelu_zones(function, [(1, bound) for bound in BOUNDS], Fitting())
    x = torch.stack([torch.linspace(-bound, bound, 4001, dtype=torch.float64) for bound in BOUNDS], 1)
    scale = torch.tensor([zone.fit.scale for zone in zones], dtype=torch.float64)
    wide = max(zone.bound for zone in zones)
    y, _ = evaluate(x * scale, 24, 12, wide, lambda b, w: of(b, w, wide, Fitting(), zones=zones))
    want = torch.nn.functional.gelu(x, approximate="tanh" if exact else "none")
    for i, zone in enumerate(zones):
        size = sum(abs(c) for c in zone.fit.coefficients)
        step = 2.5 * zone.fit.bound / 2**12
        rounding = (2.0**-8 * (size + len(zone.fit.coefficients)) + 2.0**-5) if exact else 2.0**-10 * size
        error = (y / scale - want)[:, i].abs()
        assert error.max() < zone.fit.error + 2 * step + rounding + 0.02, zone
        assert error.mean() < error.max() / 3


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_free_fit_stays_near_the_function_beyond_its_bound(bound: float) -> None:
    """A value a quarter outside is off by a little, not by the size of the coefficients: they stay below the bound."""
    (zone,) = gelu_zones("gelu", [(1, bound)], Fitting())
    fit, period = zone.fit, 2.0**zone.fit.period / zone.fit.scale
    assert fit.error <= fit.tolerance and 2.5 * bound <= period * (1 + 1e-12)
    x = np.linspace(0, 1.25 * bound, 2001)
    e = fit.constant + sum(c * np.cos(2 * np.pi * k * x / period) for k, c in enumerate(fit.coefficients, 1))
    assert np.abs(e - even_part(x)).max() < 0.2  # not derived
    assert sum(abs(c) for c in fit.coefficients) < bound / 2


def test_tanh() -> None:
    x = torch.linspace(-7, 7, 2001, dtype=torch.float64).reshape(1, -1)
    y, _ = evaluate(x, 24, 12, 7.0, lambda b, w: tanh(b, w, 7.0, Fitting()))
    assert (y - x.tanh()).abs().max() < 0.03


def test_inverse_square_root_over_fourteen_octaves() -> None:
    lo, hi = 0.01, 160.0
    v = torch.logspace(-2, 2.2, 3000, dtype=torch.float64).clamp(lo, hi).reshape(-1, 1)
    norm_type = NormType.of(lo, hi)

    def function(b: Builder, w: Wire) -> Wire:
        return inverse_power(b, w, lo, hi, root=True, frac=norm_type.y, tables=ROOT_TABLES)[0]

    y, _ = evaluate(v, 40, norm_type.v, hi, function)
    relative = (y * v.sqrt() - 1).abs()
    assert relative.max() < 0.02 and relative.mean() < 0.003


def test_reciprocal() -> None:
    limits = (0.0165, 141.0)
    v = torch.logspace(-1.8, 2.15, 3000, dtype=torch.float64).clamp(*limits).reshape(-1, 1)
    rounds = []
    for fewer in (False, True):
        y, run = evaluate(
            v, 40, 16, limits[1], lambda b, w, fewer=fewer: reciprocal_of_sum(b, w, limits, fewer_rounds=fewer)[0]
        )
        relative = (y * v - 1).abs()
        assert relative.max() < 0.01 and relative.mean() < 0.002
        rounds.append(run.ledgers[0].total("online").rounds)
    assert rounds[0] - rounds[1] == 3


def test_a_second_step_of_the_root_is_refused() -> None:
    b = Builder()
    with pytest.raises(ValueError, match="root"):
        inverse_power(b, b.input("v", 32, 12, (2, 1), 8.0), 0.5, 8.0, root=True, frac=8, second_step=True)


def on_circle(x: Tensor, circle: ScoreType) -> Tensor:
    """The representative in [-T/2, T/2)."""
    period = 2.0**circle.log_range
    return torch.remainder(x + period / 2, period) - period / 2


RANGES = [(0.5, 3.0, 3.0), (17.0, 25.0, 30.0), (25.0, 31.0, 44.0), (53.9, 70.7, 78.5), (2.0, 200.0, 202.0)]


@pytest.mark.parametrize("by_bits", [False, True])
@pytest.mark.parametrize("lowered", [False, True], ids=["zero", "lowered"])
@pytest.mark.parametrize(("above", "below", "spread"), RANGES)
def test_softmax_numerator_and_masking(above: float, below: float, spread: float, lowered: bool, by_bits: bool) -> None:
    """Rows with a score of 0, within their ranges to the last step; masked ones 0 or anything in range."""
    circle = ScoreType.of(above, below, spread, lowered)
    generator = torch.Generator().manual_seed(3)
    most = torch.rand((2, 16, 1), generator=generator, dtype=torch.float64) * above
    most[0, :2] = above
    x = most - torch.rand((2, 16, 32), generator=generator, dtype=torch.float64) * (spread - 0.01)
    x = x.clamp(min=-below)
    x[0, 0, ::2] = above - 0.01  # extremes side by side
    x[0, 1, 1::2] = max(above - spread, -below) + 0.01
    x[0, 2] = 0.0  # a row whose maximum is that of the first key, others at the bottom
    x[0, 3, 1:] = -min(below, spread) + 0.01
    x[0, 3, 0] = 0.0
    x[..., 0] = 0.0
    want = x.clone()
    want[:, :, 20:] = -float("inf")
    x[:, :, 20:] = circle.mask + (x[:, :, 20:] if lowered else 0.0)

    def function(b: Builder, w: Wire) -> Wire:
        return softmax_numerator(b, w, circle, by_bits=by_bits)[0]

    e, run = evaluate(on_circle(x, circle), 16, circle.frac, 0.0, function)
    rounds = 3 + by_bits if above >= circle.width else 1
    assert run.ledgers[0].total("online").rounds == rounds
    assert e[:, :, 20:].abs().max() < 1e-4
    p = e / e.sum(-1, keepdim=True)
    assert (p - want.softmax(-1)).abs().max() < 0.02
    assert e.max() <= 1.05
    assert e.sum(-1).min() > 0.9 * torch.tensor(-2 * circle.width).exp()


@pytest.mark.parametrize("high", [False, True])
def test_scores_beyond_their_range_show_in_the_sum(high: bool) -> None:
    """By y above where the exponential ends, from above or round the circle from below, a score is e^y, beyond what a
    sum may be, but where the low bits carry, which has a chance of y / 16: then it is lost."""
    circle, beyond = ScoreType.of(12.0 if high else 0.0, 20.0, 28.0), 4.0
    x = torch.zeros((1, 200, 16), dtype=torch.float64)
    x[..., 2] = 2.0 * circle.asked
    x[..., 3] = 2.0 * circle.asked + circle.width + beyond - (0.0 if high else 2.0**circle.log_range)
    limits = []

    def function(b: Builder, w: Wire) -> Wire:
        _, total, found = softmax_numerator(b, w, circle)
        limits.append(found)
        return total

    total, _ = evaluate(on_circle(x, circle), 16, circle.frac, 0.0, function)
    found = float((total > limits[0][1]).double().mean())
    assert 0.55 < found < 0.95  # 3/4, and six deviations


@pytest.mark.parametrize("dealt", [PRECISE, NARROW], ids=["precise", "narrow"])
def test_causal_softmax_numerator(dealt: ExponentialType) -> None:
    n, generator = 24, torch.Generator().manual_seed(5)
    x = torch.randn((1, 2, n, n), generator=generator, dtype=torch.float64).clamp(-4, 4) * 6
    x = (x - x[..., :1]).clamp(-30, 25)
    circle = ScoreType.of(25.0, 30.0, 55.0)
    hidden = torch.ones((n, n), dtype=torch.bool).triu(1)

    def function(b: Builder, w: Wire) -> Wire:
        return softmax_numerator(b, w, circle, causal=True, dealt=dealt)[0]

    e, run = evaluate(on_circle(x, circle), 16, circle.frac, 0.0, function)
    assert run.ledgers[0].total("online").rounds == 3
    assert e.masked_fill(~hidden, 0).abs().max() == 0
    p = e / e.sum(-1, keepdim=True)
    # precise: p (1 - p) times 2^-7, the public factor's rounding, and two steps of the circle, 2^-9 each; narrow: not
    # derived, twice what thirty runs showed
    worst = {PRECISE: 0.0025, NARROW: 0.096}[dealt]
    assert (p - x.masked_fill(hidden, -float("inf")).softmax(-1)).abs().max() < worst


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


@pytest.mark.parametrize(("octaves", "rounds"), [(5, 3), (8, 3), (12, 6)])
def test_standardise_by_a_table_or_several(octaves: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn((40, 384), generator=generator, dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) * torch.logspace(-octaves / 4, octaves / 4, 40, 2.0, dtype=torch.float64)[:, None]
    var = x.var(1, unbiased=False)
    limits = float(var.min()), float(var.min()) * 2**octaves
    x, var = x[var <= limits[1]], var[var <= limits[1]]
    y, run = evaluate(x, 24, 12, float(x.abs().max()), lambda b, w: standardise(b, w, limits, 1e-12, 48))
    assert run.ledgers[0].total("online").rounds == rounds
    want = x / var.sqrt()[:, None]
    # the table's 2^-7 at the smallest variances, and the roundings of y and of the result: 2^-8 each at most
    assert ((y * deviation_scale(384) - want).abs() / want.abs().clamp(min=1)).max() < 2.0**-6


def test_bounds_that_do_not_fit_are_refused() -> None:
    b = Builder()
    b.layer("layer")
    x = b.input("x", 16, 8, (2, 2), 100.0)
    (opened,) = b.open(x)
    with pytest.raises(RangeError, match="does not fit"):
        b.extend(opened, 32)
    with pytest.raises(RangeError, match=r"attention scores up to 300\.1 above .* spans 1024$"):
        ScoreType.of(300.1, 720.1, 900.0)
    assert ScoreType.of(300.1, 720.0, 1004.0).log_range == 10
    with pytest.raises(RangeError, match=r"1004 in a row, do not fit"):
        ScoreType.of(300.0, 720.0, 1004.1)


def test_integers_and_literals_stand_for_logarithms_and_exponentials() -> None:
    assert all(nearest_log2(width) == round(math.log2(width)) for width in range(1, 65537))
    assert math.isclose(LEAST, math.exp(-2 * ScoreType.of(*RANGES[0]).width), rel_tol=1e-15)


FITS = {"fit.py", "gelu.py", "tanh.py"}
EXACT = {"ceil", "floor", "ldexp", "prod", "sqrt"}  # of the module math: alike on every processor


@pytest.mark.parametrize(
    "path", [p for p in sorted(Path(functions.__path__[0]).glob("*.py")) if p.name not in FITS], ids=lambda p: p.name
)
def test_programs_are_made_with_arithmetic_that_no_processor_rounds_otherwise(path: Path) -> None:
    """All processes compile the same program, so only what IEEE 754 fixes to the last bit may enter it."""
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert {name.name for name in node.names} <= {"functools", "math"}, where
        if isinstance(node, ast.ImportFrom):
            assert node.module and node.module.split(".")[0] not in ("math", "numpy", "torch"), where
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
            assert node.attr in EXACT, where
        assert not isinstance(node, ast.Pow), f"a power in {path.name}: the C library's where a float enters"


def test_a_fit_that_misses_its_tolerance_tenfold_is_refused() -> None:
    """GELU inputs beyond what 40 harmonics reach, as outlier neurons have them: refused with the place, not wrong."""
    b = Builder()
    b.layer("layer 6")
    with b.label("gelu"), pytest.raises(RangeError, match=r"layer 6, gelu: gelu on \+-90 is off by 0\.1"):
        gelu(b, b.input("x", 24, 12, (1, 4), 90.0), 90.0, Fitting())

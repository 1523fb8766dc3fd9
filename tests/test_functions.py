"""Functions under MPC against float64, on real-sized ranges, with their rounds."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Run, run_mpc

from ditto import functions
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.schedule import scheduled
from ditto.errors import RangeError
from ditto.functions.fit import Fitting
from ditto.functions.gelu import TYPES, GeluType, even_part, gelu, gelu_even, gelu_zones
from ditto.functions.inverse import inverse
from ditto.functions.layernorm import (
    BY_TREE,
    FEWEST_BYTES,
    FEWEST_ROUNDS,
    deviation_scale,
    layernorm,
    layernorm_residual,
    nearest_log2,
    standardise,
    standardised_linear,
)
from ditto.functions.linear import linear
from ditto.functions.softmax import (
    DEALT_OCTAVES,
    LEAST,
    LN2,
    LOG2_E,
    MARGIN,
    NARROW,
    PRECISE,
    ExponentialType,
    ScoreType,
    softmax_numerator,
)
from ditto.functions.tanh import tanh
from ditto.models.ranges import SCORE_MARGIN
from ditto.ops import Harmonic
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
    encoded = {n: encode(weights[n.partition(".")[2]], w.ring, w.frac) for n, w in b.program.weights.items()}
    run = run_mpc(b.program, {"x": encode(x, ring, frac)}, encoded)
    cost = b.program.cost()
    totals = [ledger.total("online") for ledger in run.ledgers]
    assert {(t.rounds, t.bytes_sent) for t in totals} == {(cost.rounds, cost.online)}
    assert sum(ledger.total("offline").bytes_from_dealer for ledger in run.ledgers) == cost.dealer
    return decode(run.outputs["y"], y.ring, y.frac), run


def rounds_of(x: Tensor, ring: int, frac: int, bound: float, function: Callable[[Builder, Wire], Wire]) -> int:
    """Of a function in a program as models compile it: openings that do not depend on each other share one."""
    b = Builder()
    b.layer("layer")
    b.output("y", function(b, b.input("x", ring, frac, tuple(x.shape), bound)))
    return scheduled(b.finish()).cost().rounds


def side_by_side(b: Builder, parts: list[Wire]) -> Wire:
    """What `gelu` gives in parts of different rings, as an activation extends them."""
    wide = [b.extend(part, 32) for part in b.open(*parts)]
    return b.join(*wide, dim=1) if len(wide) > 1 else wide[0]


@pytest.mark.parametrize("bound", [6.0, 12.0, 27.0])
def test_gelu(bound: float) -> None:
    x = torch.linspace(-bound, bound, 4001, dtype=torch.float64).reshape(1, -1)
    y, _ = evaluate(x, 24, 12, bound, lambda b, w: side_by_side(b, gelu(b, "gelu", w, bound, Fitting(), GeluType())))
    error = (y - torch.nn.functional.gelu(x)).abs()
    assert error.max() < 0.04 and error.square().mean().sqrt() < 0.012


BOUNDS = (6.0, 9.0, 24.0, 128.0)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("function", ["gelu", "tanh gelu"])
def test_gelu_by_the_range_of_each_column(function: str, kind: GeluType) -> None:
    """Columns of four ranges, each with its scale: as near to GELU as its fit and the roundings of its coefficients.

    A result is off by the fit's error; by its index's rounding, a step of T / 2^n at most, of which e' < 1 makes as
    much; by `Harmonic.ulp`; by x's rounding to 12 fraction bits and, where its harmonics have fewer, to theirs; and by
    the truncation of the result, one unit. All but the first two are of the scaled result.
    """
    zones = gelu_zones(function, [(1, bound) for bound in BOUNDS], Fitting(), kind.frac)
    x = torch.stack([torch.linspace(-bound, bound, 4001, dtype=torch.float64) for bound in BOUNDS], 1)
    scale = torch.tensor([zone.fit.scale for zone in zones], dtype=torch.float64)
    wide = max(zone.bound for zone in zones)
    harmonics: list[Harmonic] = []

    def function_of(b: Builder, w: Wire) -> Wire:
        y = side_by_side(b, gelu(b, function, w, wide, Fitting(), kind, zones))
        harmonics.extend(step.op for step in b.program.steps if isinstance(step.op, Harmonic))
        return y

    y, _ = evaluate(x * scale, 24, 12, wide, function_of)
    want = torch.nn.functional.gelu(x, approximate="tanh" if function == "tanh gelu" else "none")
    assert [op.bits for op in harmonics] == [kind.ring, kind.ring, 32, 32]
    for i, (zone, op) in enumerate(zip(zones, harmonics, strict=True)):
        assert op.n == min(12, zone.fit.period + 7)
        step = 2.0**zone.fit.period / zone.fit.scale / 2**op.n
        digits = op.fu + op.fv
        rounding = op.ulp() * 2.0**-digits + 2.0**-12 + 2.0 ** -min(digits, 13) + 2.0**-kind.frac
        error = (y / scale - want)[:, i].abs()
        assert error.max() < zone.fit.error + step + rounding / zone.fit.scale, zone
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


def and_rounds(x: Tensor, ring: int, frac: int, bound: float, function: Callable[[Builder, Wire], Wire]) -> Any:
    """`evaluate`, and the rounds of the program that is run in a model: what does not wait shares them."""
    programs: list[Program] = []

    def kept(b: Builder, w: Wire) -> Wire:
        programs.append(b.program)
        return function(b, w)

    y, _ = evaluate(x, ring, frac, bound, kept)
    return y, scheduled(programs[0]).cost().rounds


def inverse_of(v: Tensor, limits: tuple[float, float], root: bool, single: int = 0) -> tuple[Tensor, int]:
    """y / f(v) - 1 of `inverse`, and its rounds."""
    y, rounds = and_rounds(
        v.reshape(-1, 1), 40, 20, limits[1], lambda b, w: inverse(b, w, *limits, root=root, single=single)[0]
    )
    return y[:, 0] * (v.sqrt() if root else v) - 1, rounds


@pytest.mark.parametrize(("hi", "single", "rounds"), [(160.0, 0, 2), (160.0, 10, 2), (0.5, 0, 2), (0.5, 10, 1)])
def test_inverse_square_root_over_six_and_fourteen_octaves(hi: float, single: int, rounds: int) -> None:
    limits = (0.01, hi)
    v = torch.logspace(-2, math.log10(hi), 3000, dtype=torch.float64).clamp(*limits)
    relative, found = inverse_of(v, limits, True, single)
    assert found == rounds
    # the line of the smallest bucket, half of two steps of v there, and y's truncation and the rounding of the slope
    assert relative.abs().max() < 3 / 8 / (16 * 7**2) + 1 / (7 * 2**6) + 1.5 * 2.0**-9 and relative.abs().mean() < 0.001


@pytest.mark.parametrize("hi", [0.05, 1.0, 4.0, 16.0, 141.0, 563.0, 5000.0])
def test_reciprocal(hi: float) -> None:
    """From one table to ten, which one or two sets of zones choose between."""
    limits = (0.0165, hi)
    v = torch.logspace(math.log10(limits[0]), math.log10(hi), 3000, dtype=torch.float64).clamp(*limits)
    relative, rounds = inverse_of(v, limits, False)
    assert rounds == (1 if hi < 0.1 else 2)
    assert (
        relative.abs().max() < 1 / (16 * 7**2) + 2 / (7 * 2**6) + 1.5 * 2.0**-9 < 0.01 and relative.abs().mean() < 0.002
    )
    assert relative.mean().abs() < 0.0005  # not derived


def test_an_inverse_of_what_has_too_few_bits_is_refused() -> None:
    b = Builder()
    b.layer("layer")
    with pytest.raises(RangeError, match="takes 17 bits; there are 16"):
        inverse(b, b.input("v", 16, 14, (2, 1), 1.9), 0.1, 7.9, root=True)


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

    e, run = evaluate(on_circle(x, circle), circle.ring, circle.frac, 0.0, function)
    # by bits one round for the answers, and one for the key, which finds company in a whole program
    rounds = 3 + 2 * by_bits if above >= circle.width else 1
    assert run.ledgers[0].total("online").rounds == rounds
    assert e[:, :, 20:].abs().max() < 1e-4
    p = e / e.sum(-1, keepdim=True)
    assert (p - want.softmax(-1)).abs().max() < 0.02
    assert e.max() <= 1.05
    assert e.sum(-1).min() > 0.9 * torch.tensor(-2 * circle.width).exp()


@pytest.mark.parametrize("lowered", [False, True], ids=["zero", "lowered"])
@pytest.mark.parametrize(("above", "below"), [(0.5, 3.0), (7.2, 23.0), (10.9, 15.0)])
def test_softmax_numerator_without_a_maximum(above: float, below: float, lowered: bool) -> None:
    circle, n = ScoreType.without_maximum(above, below, lowered), 32
    generator = torch.Generator().manual_seed(3)
    x = -torch.rand((1, 200, n), generator=generator, dtype=torch.float64) * (below - 0.01)
    x[..., 1] = torch.linspace(-below, above, 200)  # the largest of a row, from below 0 to the bound
    x[..., 0] = 0.0
    want = x.clone()
    want[:, :, 20:] = -float("inf")
    x[:, :, 20:] = circle.mask + (x[:, :, 20:] if lowered else 0.0)
    seen = []

    def function(b: Builder, w: Wire) -> Wire:
        dealt = PRECISE.resolving(circle.octaves).holding(16)
        e, total, limits = softmax_numerator(b, w, circle, dealt=dealt)
        seen.append((total.frac, limits))
        return e

    e, run = evaluate(on_circle(x, circle), circle.ring, circle.frac, 0.0, function)
    assert run.ledgers[0].total("online").rounds == 1
    ((frac, (least, most)),) = seen
    assert frac >= circle.octaves + 10  # digits of a row whose largest score is 0
    total = e.sum(-1)
    assert total.min() > least and total.max() < most
    assert e[:, :, 20:].abs().max() <= 2.0 ** -(circle.octaves + 10)  # e^-16 of the least; truncations may add a unit
    # p (1 - p), at most 1/4, times what two entries differ by at most, twice one's: the public factor's rounding, 2^-5
    # at 4 bits; the dealt one's, e^16 2^-37 in a row whose largest is 2^-DEALT_OCTAVES; roundings of scores and of E
    worst = 0.5 * (2.0**-5 + math.exp(16) * 2.0 ** (DEALT_OCTAVES - 37) + 2.0**-9)
    assert (e / total[..., None] - want.softmax(-1)).abs().max() < worst


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

    total, _ = evaluate(on_circle(x, circle), circle.ring, circle.frac, 0.0, function)
    found = float((total > limits[0][1]).double().mean())
    assert 0.55 < found < 0.95  # 3/4, and six deviations


@pytest.mark.parametrize("by_bits", [False, True])
@pytest.mark.parametrize("dealt", [PRECISE, NARROW], ids=["precise", "narrow"])
def test_causal_softmax_numerator(dealt: ExponentialType, by_bits: bool) -> None:
    n, generator = 24, torch.Generator().manual_seed(5)
    x = torch.randn((1, 2, n, n), generator=generator, dtype=torch.float64).clamp(-4, 4) * 6
    x = (x - x[..., :1]).clamp(-30, 25)
    circle = ScoreType.of(25.0, 30.0, 55.0)
    hidden = torch.ones((n, n), dtype=torch.bool).triu(1)

    def function(b: Builder, w: Wire) -> Wire:
        return softmax_numerator(b, w, circle, causal=True, dealt=dealt, by_bits=by_bits)[0]

    e, run = evaluate(on_circle(x, circle), circle.ring, circle.frac, 0.0, function)
    assert run.ledgers[0].total("online").rounds == 3 + 2 * by_bits
    assert e.masked_fill(~hidden, 0).abs().max() == 0
    p = e / e.sum(-1, keepdim=True)
    # precise: p (1 - p), at most 1/4, times 2^-7, the public factor's rounding, and half a step of the circle for each
    # of two scores, 2^-9 each; narrow: not derived, twice what thirty runs showed
    worst = {PRECISE: 0.003, NARROW: 0.096}[dealt]
    assert (p - x.masked_fill(hidden, -float("inf")).softmax(-1)).abs().max() < worst


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("width", [128, 384, 768])
def test_layernorm_with_outlier_channels(width: int, part: int) -> None:
    """Rows with a mean; part 0 is the result, part 1 as the next residual takes it, part 2 its mean."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((12, width), generator=generator, dtype=torch.float64) * torch.logspace(-1, 0.7, 12)[:, None]
    x[3, 7] = 180.0  # an outlier channel, as pretrained models have
    mean = x.mean(1, keepdim=True)
    var = x.var(1, unbiased=False)
    lo, hi = float(var.min()) / 2, float(var.max()) * 2
    gamma = 1 + 0.1 * torch.randn(width, generator=generator, dtype=torch.float64)
    beta = 0.1 * torch.randn(width, generator=generator, dtype=torch.float64) + 0.5
    scaled = gamma * deviation_scale(width)
    weights = {
        "gamma": scaled, "beta": beta,
        "mean.weight": scaled[:, None] / width, "mean.bias": beta.mean()[None],
    }  # fmt: skip

    def function(b: Builder, w: Wire) -> Wire:
        rows, means = (b.view(w, slices=((1, *at),)) for at in ((0, width), (width, width + 1)))
        means = b.affine(b.retype(means, bound=2.0), 1, 0, 16)
        (z,) = b.open(standardise(b, rows, (lo, hi), 1e-12, 32, mean=means))
        return layernorm(b, z, "norm", 40.0) if part == 0 else layernorm_residual(b, z, "norm", 40.0, 200.0)[part - 1]

    y, run = evaluate(torch.cat([x, mean], 1), 24, 12, 200.0, function, **weights)
    assert run.ledgers[0].total("online").rounds == 7  # as written; scheduled, the zones share the tables' round
    want = torch.nn.functional.layer_norm(x, (width,), gamma, beta, 1e-12)
    if part == 2:
        assert (y - want.mean(1, keepdim=True)).abs().max() < 0.002
    else:
        assert ((y - want).abs() / want.abs().clamp(min=1)).max() < 0.02


@pytest.mark.parametrize(
    ("octaves", "single", "rounds"),
    [
        (5, FEWEST_ROUNDS, 3),
        (8, FEWEST_ROUNDS, 3),
        (12, FEWEST_ROUNDS, 4),
        (5, 9, 3),
        (5, FEWEST_BYTES, 4),
        (12, FEWEST_BYTES, 4),
        (1, BY_TREE, 3),
        (12, BY_TREE, 3),
        (17, BY_TREE, 3),
    ],
)
def test_standardise_by_a_table_or_several(octaves: int, single: int | None, rounds: int) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn((40, 384), generator=generator, dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) * torch.logspace(-octaves / 4, octaves / 4, 40, 2.0, dtype=torch.float64)[:, None]
    var = x.var(1, unbiased=False)
    limits = float(var.min()), float(var.min()) * 2**octaves
    x, var = x[var <= limits[1]], var[var <= limits[1]]
    size = float(x.abs().max())
    y, found = and_rounds(x, 24, 12, size, lambda b, w: standardise(b, w, limits, 1e-12, 48, single))
    assert found == rounds
    want = x / var.sqrt()[:, None]
    # a line's 2^-8 at the smallest variances, and the roundings of y and of the result: 2^-8 each at most
    assert ((y * deviation_scale(384) - want).abs() / want.abs().clamp(min=1)).max() < 2.0**-6


@pytest.mark.parametrize("ring", [32, 48])
def test_a_projection_of_rows_that_are_not_yet_standardised(ring: int) -> None:
    """As a projection of standardised rows has it, one round less."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn((6, 384), generator=generator, dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) * torch.logspace(-1, 1, 6, 2.0, dtype=torch.float64)[:, None]
    var = x.var(1, unbiased=False)
    limits, root = (float(var.min()) / 2, float(var.max()) * 2), FEWEST_ROUNDS
    weight = torch.randn((384, 24), generator=generator, dtype=torch.float64) / 10
    bias = torch.randn(24, generator=generator, dtype=torch.float64)
    want = x / var.sqrt()[:, None] @ weight + bias
    bound = float(want.abs().max()) * 1.5
    weights = {"weight": weight * deviation_scale(384), "bias": bias}

    def together(b: Builder, w: Wire) -> Wire:
        y = standardised_linear(b, w, limits, 1e-12, ring, root, "next", 24, bound)
        assert y is not None
        return y

    def apart(b: Builder, w: Wire) -> Wire:
        (z,) = b.open(standardise(b, w, limits, 1e-12, ring, root))
        return linear(b, z, "next", 24, bound)

    size = float(x.abs().max())
    got, _ = evaluate(x, 24, 12, size, together, **weights)
    other, _ = evaluate(x, 24, 12, size, apart, **weights)
    assert [rounds_of(x, 24, 12, size, function) for function in (together, apart)] == [3, 4]
    # y: 2^-8; of 384 roundings of z, 2^-8 / sqrt(6) each, times 0.1, six deviations: 0.019. Together has no z to round
    scale = want.abs().clamp(min=1)
    assert ((got - want).abs() / scale).max() < 0.023 and ((other - want).abs() / scale).max() < 0.023


def test_a_projection_that_has_no_room_before_its_division_is_refused() -> None:
    """Sixteen octaves of variance and a result up to 1000: the least row and the largest product do not fit 32 bits."""
    b = Builder()
    b.layer("layer")
    x = b.input("x", 24, 12, (1, 64), 900.0)
    assert standardised_linear(b, x, (0.01, 600.0), 1e-12, 32, FEWEST_ROUNDS, "next", 8, 1000.0) is None
    assert not b.program.steps and not b.program.weights


def test_gelu_that_ends_on_the_ring_of_the_next_product() -> None:
    """One round and no extension of the result; narrow and wide columns side by side."""
    generator, fits = torch.Generator().manual_seed(4), Fitting()
    zones = gelu_zones("gelu", [(8, 6.0), (8, 24.0)], fits)
    reach = torch.tensor([6.0] * 8 + [24.0] * 8, dtype=torch.float64)
    scales = torch.cat([torch.full((zone.columns,), zone.fit.scale) for zone in zones]).double()
    x = (torch.rand((64, 16), generator=generator, dtype=torch.float64) * 2 - 1) * reach
    most = max(zone.bound for zone in zones)

    def function(b: Builder, w: Wire) -> Wire:
        (y,) = gelu(b, "gelu", w, most, fits, GeluType(ring=42, result=32), zones)
        assert (y.ring, y.frac) == (32, 8)
        return y

    y, _ = evaluate(x * scales, 24, 12, most, function)
    assert rounds_of(x, 24, 12, most, function) == 1
    error = (y / scales - torch.nn.functional.gelu(x)).abs().amax(0)
    assert error[:8].max() < 0.02 and error[8:].max() < 0.05, error


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_the_even_part_on_the_ring_of_the_next_product(kind: GeluType) -> None:
    """e(x) alone, one round, wide columns like narrow ones. Error as of GELU in parts, less what x/2 adds: the fit's, a
    step of the index (of which |e'| < 1 makes as much), `Harmonic.ulp`, and one unit of the result."""
    bounds, fits = (6.0, 128.0), Fitting()
    kind = replace(kind, ring=32 + kind.ring - kind.result, result=32)
    zones = gelu_zones("gelu", [(1, bound) for bound in bounds], fits, kind.frac)
    x = torch.stack([torch.linspace(-bound, bound, 1001, dtype=torch.float64) for bound in bounds], 1)
    scale = torch.tensor([zone.fit.scale for zone in zones], dtype=torch.float64)
    wide = max(zone.bound for zone in zones)
    harmonics: list[Harmonic] = []

    def function(b: Builder, w: Wire) -> Wire:
        y = gelu_even(b, "gelu", w, wide, fits, kind, zones)
        assert (y.ring, y.frac) == (32, kind.frac)
        harmonics.extend(step.op for step in b.program.steps if isinstance(step.op, Harmonic))
        return y

    y, run = evaluate(x * scale, 24, 12, wide, function)
    assert run.ledgers[0].total("online").rounds == 1
    error = (y / scale - torch.nn.functional.gelu(x) + x / 2).abs()
    for i, (zone, op) in enumerate(zip(zones, harmonics, strict=True)):
        step = 2.0**zone.fit.period / zone.fit.scale / 2**op.n
        rounding = op.ulp() * 2.0 ** -(op.fu + op.fv) + 2.0**-kind.frac
        assert error[:, i].max() < zone.fit.error + step + rounding / zone.fit.scale, zone


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
    assert math.isclose(LN2, math.log(2), rel_tol=1e-15) and math.isclose(LOG2_E, 1 / math.log(2), rel_tol=1e-15)
    assert math.isclose(1 / SCORE_MARGIN, 1 - 1 / MARGIN, rel_tol=1e-15)
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
    with b.label("gelu"), pytest.raises(RangeError, match=r"layer 6, gelu: gelu on \+-180 is off by 0\.2"):
        gelu(b, "gelu", b.input("x", 24, 12, (1, 4), 180.0), 180.0, Fitting(), GeluType())

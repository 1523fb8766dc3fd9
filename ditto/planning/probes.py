"""How far a part of a layer is from what it stands for: measured by the plain interpreter on made-up values.

A part is compiled by itself, by the layer's ranges and one set of choices, and run on integers that fill those ranges
as a calibration's texts did: margins are taken back. Its error is the root mean square of the difference to floats,
over that of the exact result. The errors of a run under MPC are in it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from ditto.engine.plain import plain_weights
from ditto.engine.program import Builder
from ditto.functions.fit import Fitting
from ditto.functions.layernorm import RESIDUAL, deviation_scale
from ditto.functions.smooth import column_scales, widest
from ditto.models.description import Dimensions, LayerRanges, NormRange
from ditto.models.ranges import ACTIVATION_MARGIN, GELU_MARGIN, SCORE_MARGIN, VARIANCE_MARGIN, attention_of
from ditto.planning.lossy import run_lossy
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.presets.style import ENCODER, AttentionBounds, Norm, Stage
from ditto.ring import signed
from ditto.ring.fixedpoint import decode, encode

Tensor = torch.Tensor
ROWS, HEADS, COLUMNS = 64, 4, 96
SIGMAS = 4.0  # what a calibration's maximum is of a normal distribution, about
WIDE, CUT = 32, 20  # of a projection on its way to an activation
WIDEST, READ = 48, 8  # of what a causal attention's projection reads (else WIDE), with so many fraction bits
EXACT = 1 << 6  # parts of a unit that any type here holds
KEPT = 256  # errors: layers repeat, and so do requests


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@lru_cache(maxsize=KEPT)
def softmax_error(preset: str, choices: Choices, d: Dimensions, ranges: LayerRanges, causal: bool) -> float:
    """Of the context, from queries, keys and values of one layer."""
    size = d.hidden // d.heads
    width, bounds = HEADS * size, attention_of(ranges)
    sigma, first = _scores(bounds)
    most = ranges.qkv / ACTIVATION_MARGIN
    x = _random(ROWS, width) * min(math.sqrt(sigma) / size**0.25, most / SIGMAS)
    # queries, keys and values of a head are columns of three different ones; the first column of each head is the
    # first key's own, which scores more than others (or less) by what the ranges say
    turned = [torch.eye(width, dtype=torch.float64).roll(part * size, 1) for part in range(3)]
    turned[0][:, ::size] = 0
    x[:, ::size] = 0
    x[0, ::size] = math.copysign(min(math.sqrt(abs(first)), most), first)
    bias = torch.zeros(3 * width, dtype=torch.float64)
    bias[:width:size] = min(math.sqrt(abs(first)), most)
    x, bias = ((y * EXACT).round() / EXACT for y in (x, bias))  # what the scores' inputs lose is no choice's fault
    weight = torch.cat(turned, 1)
    b = Builder()
    b.layer("probe")
    stage = Stage(causal=causal)
    read = b.input("x", WIDEST if causal else WIDE, READ, (ROWS, width), ranges.qkv)
    residual = b.input("residual", RESIDUAL.ring, RESIDUAL.frac, (ROWS, width), 1.0)
    chosen = preset_of(preset).style.chosen(choices)
    (opened,) = b.open(read)
    scales = (1.0, 1.0) if causal else chosen.scales(bounds.scores, 1)
    scale = torch.tensor([*scales, 1.0], dtype=torch.float64).repeat_interleave(width)
    bounds = bounds._replace(context=max(ranges.context, ranges.qkv))
    heads = chosen.heads(b, opened, "qkv", HEADS, 1, bounds, stage)
    b.output("context", chosen.attend(b, heads, bounds, residual, stage))
    got = _run(b, {"x": x, "residual": torch.zeros_like(x)}, {"qkv.weight": weight * scale, "qkv.bias": bias * scale})
    read_off = (x @ weight + bias).chunk(3, 1)
    q, k, v = (part.reshape(ROWS, HEADS, size).transpose(0, 1) for part in read_off)
    scores = q @ k.transpose(1, 2)
    if causal:
        scores = scores.masked_fill(torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1), -math.inf)
    return relative(got, (scores.softmax(-1) @ v).transpose(0, 1).reshape(ROWS, width))


def _scores(bounds: AttentionBounds) -> tuple[float, float]:
    """Of made-up scores the standard deviation, and the mean of those of the first key: less that of the first key
    (which is random, too) they fill what the ranges say."""
    above, below, spread = (x / SCORE_MARGIN for x in bounds.scores[1:])
    reach = min((above + below) / 2, spread / 2, bounds.scores.size / SCORE_MARGIN)
    return reach / SIGMAS / math.sqrt(2), (below - above) / 2


@lru_cache(maxsize=KEPT)
def layernorm_error(preset: str, choices: Choices, d: Dimensions, ranges: NormRange, folded: bool) -> float:
    """Of a LayerNorm's result, over the range of its variance; where gamma is folded, with the projection after it."""
    low, high = (math.log(limit) for limit in ranges.variance)
    inside = torch.linspace(low + math.log(VARIANCE_MARGIN), high - math.log(VARIANCE_MARGIN), ROWS).double().exp()
    x = _random(ROWS, d.hidden)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0) * inside[:, None].sqrt()
    b = Builder()
    b.layer("probe")
    bound = max(float(x.abs().max()), ranges.input)
    frac = min(RESIDUAL.frac, RESIDUAL.ring - 2 - math.ceil(math.log2(bound)))
    read = b.input("x", RESIDUAL.ring, frac, (ROWS, d.hidden), bound)
    norm = Norm("norm", ranges.variance, max(ranges.output, SIGMAS * 2), d.epsilon, whole=True)
    scale = deviation_scale(d.hidden)
    weights = {"norm.gamma": torch.full((d.hidden,), scale), "norm.beta": torch.zeros(d.hidden)}
    chosen = preset_of(preset).style.chosen(choices)
    if folded:
        b.output("y", chosen.norm_linear(b, read, norm, "next", d.hidden, norm.bound))
        weights = {"next.weight": scale * torch.eye(d.hidden), "next.bias": torch.zeros(d.hidden)}
    else:
        b.output("y", chosen.norm(b, read, norm).out)
    got = _run(b, {"x": x}, weights)
    return relative(got, F.layer_norm(x, (d.hidden,), eps=d.epsilon))


@lru_cache(maxsize=KEPT)
def activation_error(preset: str, choices: Choices, d: Dimensions, ranges: LayerRanges) -> float:
    """Of the activation's result, neurons as wide as their bounds say."""
    groups = [(1 + group.count * COLUMNS // d.inner, group.bound) for group in ranges.neurons]
    groups = groups or [(COLUMNS, ranges.activation)]
    chosen, fits = preset_of(preset).style.chosen(choices), Fitting()
    zones = chosen.zones(d.activation, groups, fits) if ranges.neurons else []
    reach = torch.cat([torch.full((count,), bound / GELU_MARGIN / SIGMAS) for count, bound in groups]).double()
    x = _random(ROWS, len(reach)) * reach
    scales = torch.tensor(column_scales(zones, len(reach)), dtype=torch.float64)
    wide = widest(zones, ranges.activation)
    b = Builder()
    b.layer("probe")
    read = b.input("x", WIDE, CUT, x.shape, wide)
    residual = b.input("residual", RESIDUAL.ring, RESIDUAL.frac, (ROWS, 1), 1.0)
    b.output("y", chosen.activation(b, d.activation, read, wide, residual, fits, ENCODER, zones))
    got = _run(b, {"x": x * scales, "residual": torch.zeros(ROWS, 1)}, {}) / scales
    if chosen.halves(d.activation, ENCODER):
        got = got + x / 2
    return relative(got, F.gelu(x, approximate="tanh" if d.activation == "tanh gelu" else "none"))


def _run(b: Builder, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """The program's first output, with the errors that shares make."""
    program = b.finish()
    values: dict[str, Any] = {n: signed(encode(inputs[n], w.ring, w.frac), w.ring) for n, w in program.inputs.items()}
    held = {name: encode(weights[name], wire.ring, wire.frac) for name, wire in program.weights.items()}
    outputs = run_lossy(program, values | plain_weights(program, held))
    name, wire = next(iter(program.outputs.items()))
    return decode(outputs[name], wire.ring, wire.frac).double()

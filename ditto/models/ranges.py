"""Calibration: run the plaintext model over texts and record the ranges that fix types and bounds.

Bounds are maxima over everything seen, outlier channels included: nothing is clipped. Margins leave room for what
calibration did not see; a value beyond them wraps, which the plain interpreter reproduces. All are rounded up to three
significant digits (least variances down).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ditto.functions.fit import Fits
from ditto.functions.layernorm import deviation_scale
from ditto.functions.smooth import Zone, column_scales, widest
from ditto.models.description import Description, LayerRanges, Neurons, NormRange, ScoreRange, round_down, round_up
from ditto.presets.style import AttentionBounds, Norm, Scores, Style

Tensor = torch.Tensor
Observe = Callable[[int, str, Tensor], None]  # layer, name, values: what a plaintext forward shows of itself
Site = tuple[int, str]  # layer, and what is bounded there

ACTIVATION_MARGIN, SCORE_MARGIN, VARIANCE_MARGIN, GELU_MARGIN, LOGITS_MARGIN = 1.5, 1.5, 2.0, 1.25, 2.0
LEAST_GELU, LEAST_LOGITS = 2.0, 1.0
HIGH, LOW = " variance", " least variance"  # of what enters a LayerNorm, after its name
SCORES = ("scores above", "scores below", "scores spread")  # less the first key's, as ScoreRange has them
HIDDEN_SCORE = -1e9  # of what a query does not attend to, in plaintext
# Bounds of single neurons come in coarse classes, and each class has a multiple of GRANULE neurons: a description says
# little of a neuron. The narrowest is wide enough for a neuron that calibration hardly saw at work.
CLASSES = (6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 16.0, 20.0, 24.0, 32.0, 40.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
GRANULE = 8
FEW_TOKENS, MOST_ADDED = 500, 2.5  # what is added to a neuron's bound: 0.5, and more if calibration was short


def silent(layer: int, name: str, x: Tensor) -> None:
    """Observe nothing."""


def tapped_norm(x: Tensor, t: dict[str, Tensor], name: str, epsilon: float, layer: int, observe: Observe) -> Tensor:
    """A LayerNorm in floats, its input and result shown under the last part of its name."""
    tap = name.rpartition(".")[2]
    observe(layer, f"{tap}.in", x)
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)
    observe(layer, f"{tap}.out", y)
    return y


def centre(x: Tensor) -> Tensor:
    """x less the mean over its last dimension."""
    return x - x.mean(-1, keepdim=True)


def largest(x: Tensor) -> float:
    """The largest |x|, as it is and less the mean over the last dimension."""
    return float(max(x.abs().max(), centre(x).abs().max()))


class Seen:
    """Maxima of |x|, and least and largest row variances, by (layer, name): an `Observe`.

    What enters a LayerNorm ("….in") counts centred, too. "masked scores" count less that of the first key.
    """

    def __init__(self) -> None:
        self._most: dict[Site, float] = {}
        self._variance: dict[Site, tuple[float, float]] = {}
        self._floors: Mapping[Site, float] = {}
        self._neurons: dict[int, torch.Tensor] = {}
        self._tokens: dict[int, int] = {}
        self._scores: dict[int, tuple[float, float, float]] = {}

    def __call__(self, layer: int, name: str, x: Tensor) -> None:
        if name == "masked scores":
            self._see_scores(layer, x)
            return
        key = (layer, name)
        enters_norm = name.endswith(".in")
        now = largest(x) if enters_norm else float(x.abs().max())
        self._most[key] = max(self._most.get(key, 0.0), now)
        if enters_norm:
            var = x.var(-1, unbiased=False)
            lo, hi = self._variance.get(key, (float("inf"), 0.0))
            self._variance[key] = min(lo, float(var.min())), max(hi, float(var.max()))
        if name == "activation":
            by_neuron = x.abs().flatten(0, -2).amax(0)
            self._neurons[layer] = torch.maximum(self._neurons.get(layer, by_neuron), by_neuron)
            self._tokens[layer] = self._tokens.get(layer, 0) + x[..., 0].numel()

    def add(self, other: Seen, part: float = 1.0) -> None:
        """What was seen of other texts; its sizes count for this part of them, but for those of single neurons."""
        for key, most in other._most.items():
            self._most[key] = max(self._most.get(key, 0.0), most * part)
        for key, (low, high) in other._variance.items():
            lo, hi = self._variance.get(key, (low / part, high * part))
            self._variance[key] = min(lo, low / part), max(hi, high * part)
        for layer, by_neuron in other._neurons.items():
            self._neurons[layer] = torch.maximum(self._neurons.get(layer, by_neuron), by_neuron)
            self._tokens[layer] = self._tokens.get(layer, 0) + other._tokens[layer]
        for layer, (above, below, spread) in other._scores.items():
            self._see_range(layer, (above * part, below * part, spread * part))

    def values(self) -> dict[Site, float]:
        """Every number that a range is made of, so that larger is wider: of least variances one over them."""
        found = dict(self._most)
        for (layer, name), (low, high) in self._variance.items():
            found[layer, f"{name}{HIGH}"] = high
            found[layer, f"{name}{LOW}"] = 1 / low if low else math.inf
        for layer, scores in self._scores.items():
            found |= {(layer, name): value for name, value in zip(SCORES, scores, strict=True)}
        return found

    @staticmethod
    def margin(site: Site) -> float:
        """What a range is wider than such a value by."""
        name = site[1]
        if name.endswith((HIGH, LOW)):
            return VARIANCE_MARGIN
        return {"activation": GELU_MARGIN, "logits": LOGITS_MARGIN}.get(name, ACTIVATION_MARGIN)

    def widen(self, floors: Mapping[Site, float]) -> None:
        """Ranges by `values` of these sizes at least, where the margins are no wider."""
        self._floors = floors

    def bound(self, layer: int, name: str, margin: float = ACTIVATION_MARGIN, least: float = 0.0) -> float:
        """The largest |x| with its margin, at least `least`."""
        return round_up(max(least, self._wide(layer, name, self._most[layer, name] * margin)))

    def _wide(self, layer: int, name: str, found: float) -> float:
        return max(found, self._floors.get((layer, name), 0.0))

    def layer(self, i: int, norm1: str, norm2: str) -> LayerRanges:
        """One block; its LayerNorms by the names under which they were observed."""
        return LayerRanges(
            qkv=self.bound(i, "qkv"),
            scores=self._score_range(i),
            context=self.bound(i, "context"),
            attention=self.bound(i, "attention"),
            activation=self.bound(i, "activation", GELU_MARGIN, LEAST_GELU),
            neurons=self._groups(i),
            ffn=self.bound(i, "ffn"),
            norm1=self.norm(i, norm1),
            norm2=self.norm(i, norm2),
        )

    def _see_scores(self, layer: int, x: Tensor) -> None:
        hidden, shifted = x <= HIDDEN_SCORE / 2, x - x[..., :1]
        most = shifted.masked_fill(hidden, -torch.inf).amax(-1)
        least = shifted.masked_fill(hidden, torch.inf).amin(-1)
        self._see_range(layer, (float(most.max()), -float(least.min()), float((most - least).max())))

    def _see_range(self, layer: int, now: tuple[float, float, float]) -> None:
        before = self._scores.get(layer, (0.0, 0.0, 0.0))
        self._scores[layer] = max(before[0], now[0]), max(before[1], now[1]), max(before[2], now[2])

    def _score_range(self, i: int) -> ScoreRange:
        sizes = zip(SCORES, self._scores[i], strict=True)
        above, below, spread = (round_up(self._wide(i, name, x * SCORE_MARGIN)) for name, x in sizes)
        size = self.bound(i, "scores", SCORE_MARGIN)
        return ScoreRange(size=size, above=above, below=below, spread=spread)

    def order(self, i: int) -> torch.Tensor:
        """The neurons of a block's feed-forward network, narrowest first."""
        return self._neurons[i].argsort()

    def neurons(self, i: int) -> torch.Tensor:
        """The largest |x| of each neuron before its activation, without a margin."""
        return self._neurons[i]

    def added(self, i: int) -> float:
        """What a neuron's bound has beside its margin."""
        return min(0.5 + FEW_TOKENS / self._tokens[i], MOST_ADDED)

    def _groups(self, i: int) -> tuple[Neurons, ...]:
        """Neurons by the class of their bound, in that order; none where one is wider than the widest class.

        The bound is GELU_MARGIN times what was seen and a little more, which was measured and not derived: on two real
        models (docs/performance.md) other texts of the calibration's kind leave it in no neuron or in a handful.
        """
        bounds = (self._neurons[i].sort().values * GELU_MARGIN + self.added(i)).tolist()
        if bounds[-1] > CLASSES[-1]:
            return ()
        groups: list[Neurons] = []
        for start in range(0, len(bounds), GRANULE):  # a granule is as wide as its widest
            chunk = bounds[start : start + GRANULE]
            bound = next(c for c in CLASSES if c >= chunk[-1])
            if groups and groups[-1].bound == bound:
                groups[-1] = Neurons(count=groups[-1].count + len(chunk), bound=bound)
            else:
                groups.append(Neurons(count=len(chunk), bound=bound))
        return tuple(groups)

    def norm(self, layer: int, name: str) -> NormRange:
        lo, hi = self._variance[layer, f"{name}.in"]
        least = lo / VARIANCE_MARGIN
        if floor := self._floors.get((layer, f"{name}.in{LOW}")):
            least = min(least, 1 / floor)
        return NormRange(
            input=self.bound(layer, f"{name}.in"),
            output=self.bound(layer, f"{name}.out"),
            variance=(
                round_down(least),
                round_up(self._wide(layer, f"{name}.in{HIGH}", hi * VARIANCE_MARGIN)),
            ),
        )


def zones_of(style: Style, description: Description, layer: int, fits: Fits) -> list[Zone]:
    """How a style, its choices for this block made, computes the activation there: by the ranges of its neurons, or
    (none) by one range for all."""
    style = style.chosen(description.choices_of(layer))
    neurons = [(group.count, group.bound) for group in description.ranges.layers[layer].neurons]
    return style.zones(description.dimensions.activation, neurons, fits)


def activation_of(style: Style, description: Description, layer: int, fits: Fits) -> tuple[list[Zone], float]:
    """The same, and the bound of what the activation reads, its columns' scales included."""
    zones = zones_of(style, description, layer, fits)
    return zones, widest(zones, description.ranges.layers[layer].activation)


def neuron_scales(style: Style, description: Description, layer: int) -> torch.Tensor:
    """What the weights before the activation of a block are multiplied with, neuron by neuron, and those after it
    divided by: [inner]."""
    zones = zones_of(style, description, layer, description.fits)
    return torch.tensor(column_scales(zones, description.dimensions.inner))


def scores_of(layer: LayerRanges) -> Scores:
    """A layer's scores as a style takes them."""
    return Scores(**layer.scores.model_dump())


def attention_of(layer: LayerRanges) -> AttentionBounds:
    """Likewise all that bounds its attention."""
    return AttentionBounds(layer.qkv, scores_of(layer), layer.context)


def norm_of(name: str, found: NormRange, epsilon: float, after: NormRange | None = None, whole: bool = False) -> Norm:
    """A LayerNorm as a style takes it. `after`: the one that reads the residual sum that its result goes into."""
    return Norm(name, found.variance, found.output, epsilon, after.input if after else 0.0, whole)


def folded(gamma: Tensor, beta: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A projection with a LayerNorm's gamma and beta folded into it, for standardised rows by a style that is folded:
    W' = diag(s gamma) W with s = deviation_scale(H), b' = beta W + b."""
    return deviation_scale(len(gamma)) * gamma[:, None] * w, beta @ w + bias

"""Calibration: run the plaintext model over texts and record the ranges that fix types and bounds.

Bounds are maxima over everything seen, outlier channels included: nothing is clipped. Margins leave room for what
calibration did not see; a value beyond them wraps, which the plain interpreter reproduces. All are rounded up to three
significant digits (least variances down).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ditto.models.description import LayerRanges, NormRange, round_down, round_up
from ditto.presets.style import Norm

Tensor = torch.Tensor
Observe = Callable[[int, str, Tensor], None]  # layer, name, values: what a plaintext forward shows of itself

ACTIVATION_MARGIN, SCORE_MARGIN, VARIANCE_MARGIN, GELU_MARGIN, LOGITS_MARGIN = 1.5, 1.5, 2.0, 1.25, 2.0
LEAST_GELU, LEAST_LOGITS = 2.0, 1.0


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

    What enters a LayerNorm ("….in") counts centred, too.
    """

    def __init__(self) -> None:
        self._most: dict[tuple[int, str], float] = {}
        self._variance: dict[tuple[int, str], tuple[float, float]] = {}

    def __call__(self, layer: int, name: str, x: Tensor) -> None:
        key = (layer, name)
        enters_norm = name.endswith(".in")
        now = largest(x) if enters_norm else float(x.abs().max())
        self._most[key] = max(self._most.get(key, 0.0), now)
        if enters_norm:
            var = x.var(-1, unbiased=False)
            lo, hi = self._variance.get(key, (float("inf"), 0.0))
            self._variance[key] = min(lo, float(var.min())), max(hi, float(var.max()))

    def bound(self, layer: int, name: str, margin: float = ACTIVATION_MARGIN, least: float = 0.0) -> float:
        """The largest |x| with its margin, at least `least`."""
        return round_up(max(least, self._most[layer, name] * margin))

    def layer(self, i: int, norm1: str, norm2: str) -> LayerRanges:
        """One block; its LayerNorms by the names under which they were observed."""
        return LayerRanges(
            qkv=self.bound(i, "qkv"),
            scores=self.bound(i, "scores", SCORE_MARGIN),
            context=self.bound(i, "context"),
            attention=self.bound(i, "attention"),
            activation=self.bound(i, "activation", GELU_MARGIN, LEAST_GELU),
            ffn=self.bound(i, "ffn"),
            norm1=self.norm(i, norm1),
            norm2=self.norm(i, norm2),
        )

    def norm(self, layer: int, name: str) -> NormRange:
        lo, hi = self._variance[layer, f"{name}.in"]
        return NormRange(
            input=self.bound(layer, f"{name}.in"),
            output=self.bound(layer, f"{name}.out"),
            variance=(round_down(lo / VARIANCE_MARGIN), round_up(hi * VARIANCE_MARGIN)),
        )


def norm_of(name: str, found: NormRange, epsilon: float) -> Norm:
    """A LayerNorm as a style takes it."""
    return Norm(name, found.variance, found.output, epsilon)

"""How far a program is from floats at the end of each layer and on the way there: by what its projections read.

What a projection with secret weights reads is what the parts before it came to: a LayerNorm's result (of a style that
folds gamma and beta the standardised rows), the context, the activation. Both sides are compared there as rows, whose
error is all that came before, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ditto.engine.program import Step
from ditto.functions.layernorm import deviation_scale
from ditto.models.architecture import Tensors
from ditto.models.description import Description, Dimensions
from ditto.models.gpt2.floats import quad, tanh_gelu
from ditto.models.ranges import neuron_scales
from ditto.models.registry import generates
from ditto.ops import MatmulWeight
from ditto.planning.answers import Compiled, Gap, Group, Seen, Trial
from ditto.presets import preset_of
from ditto.presets.style import Stage

Tensor = torch.Tensor
EMBEDDINGS, END = "embeddings", "hidden"
HALF = "half"  # of what an activation is taken of, where the second product reads the activation less that
ENCODER_NORMS, STREAM_NORMS = ("norm1", "norm2"), ("ln_1", "ln_2")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "tanh gelu": tanh_gelu,
    "quad": quad,
}


class Tap(NamedTuple):
    """What the product with `weight` reads; in floats, (layer, name) as a plaintext forward shows it. Reports have it
    as a layer's part."""

    weight: str
    observed: tuple[int, str]
    layer: str
    part: str


def taps_of(description: Description) -> list[Tap]:
    """In their order: of each layer the context, the activation and what the feed-forward network reads, and the end of
    each layer as the next projection reads it (if it does: hidden states that are the answer are compared as such)."""
    count = description.dimensions.layers
    blocks = [
        tap
        for i in range(count)
        for tap in (
            Tap(f"layer.{i}.out", (i, "context"), f"layer {i}", "context"),
            Tap(f"layer.{i}.ffn2", (i, "activation"), f"layer {i}", "activation"),
        )
    ]
    if generates(description.architecture):
        first, second = STREAM_NORMS
        middle = [Tap(f"layer.{i}.ffn1", (i, f"{second}.in"), f"layer {i}", "middle") for i in range(count)]
        ends = [Tap(f"layer.{i}.qkv", (i, f"{first}.in"), _end(i - 1), END) for i in range(count)]
        return [*blocks, *middle, *ends, Tap("head", (count, "ln_f.in"), _end(count - 1), END)]
    first, second = ENCODER_NORMS
    middle = [Tap(f"layer.{i}.ffn1", (i, f"{first}.in"), f"layer {i}", "middle") for i in range(count)]
    ends = [Tap(f"layer.{i}.qkv", (i - 1, f"{second}.in"), _end(i - 1), END) for i in range(1, count)]
    if description.dimensions.embedding == description.dimensions.hidden:
        ends.append(Tap("layer.0.qkv", (-1, "norm.in"), EMBEDDINGS, END))
    ends += [Tap(head, (count - 1, f"{second}.in"), _end(count - 1), END) for head in ("pooler", "classifier")]
    return [*blocks, *middle, *ends]


def _end(i: int) -> str:
    return f"layer {i}" if i >= 0 else EMBEDDINGS


class Gaps:
    """By layer and part, over all groups of a trial: a `Look`."""

    def __init__(self, description: Description, trial: Trial) -> None:
        self._description, self._trial = description, trial
        self._taps = {tap.weight: tap for tap in taps_of(description)}
        self._gaps: dict[tuple[str, str], Gap] = {}

    def __call__(self, one: Compiled, group: Group) -> Seen:
        floats = self._floats(group)
        rows = group.batch.shape[0] * group.batch.shape[1]

        def seen(step: Step, inputs: list[Any], outputs: tuple[Tensor, ...]) -> None:
            tap = self._taps.get(step.inputs[1].removesuffix(".weight")) if isinstance(step.op, MatmulWeight) else None
            if tap is None or tap.observed not in floats:
                return
            weights = one.program.weights
            frac = weights[f"{tap.weight}.bias"].frac - weights[f"{tap.weight}.weight"].frac
            got = inputs[0].double() * 2.0**-frac
            got = got * self._scale(tap, got.shape[1])
            want, real = floats[tap.observed], group.real
            if tap.part == "activation" and (tap.observed[0], HALF) in floats:
                got = got + floats[tap.observed[0], HALF].reshape(got.shape)
            if got.shape[0] == rows:
                got, want = got.reshape(*real.shape, -1)[real], want[real]
            else:  # a head reads each text's first token alone
                want = want[:, 0]
            self._gaps.setdefault((tap.layer, tap.part), Gap()).see(got, want)

        return seen

    def _floats(self, group: Group) -> dict[tuple[int, str], Tensor]:
        """Of each tap, rows [B, N, width] as the program has them but for public scales."""
        description, checkpoint = self._description, self._trial.checkpoint
        d, folded = description.dimensions, preset_of(description.preset).style.folded
        wanted = {tap.observed: tap for tap in self._taps.values()}
        found: dict[tuple[int, str], Tensor] = {}

        def observe(layer: int, name: str, x: Tensor) -> None:
            if folded and name.endswith(".in") and (layer, name) in wanted:
                found[layer, name] = _standardised(x, d)
            elif not folded and name.endswith(".out") and (layer, f"{name[:-4]}.in") in wanted:
                found[layer, f"{name[:-4]}.in"] = x.double()
            elif name == "context":
                found[layer, name] = x.double()
            elif name == "activation":
                found[layer, name] = ACTIVATIONS[d.activation](x).double()
                if _halved(description, layer):
                    found[layer, HALF] = x.double() / 2

        with torch.inference_mode():
            checkpoint.architecture.floats(checkpoint.tensors, d, group.batch, observe)
        return found

    def _scale(self, tap: Tap, width: int) -> Tensor | float:
        """What takes the program's rows to the floats'."""
        style = preset_of(self._description.preset).style
        if tap.part == "activation":
            return 1 / neuron_scales(style, self._description, tap.observed[0]).double()
        if tap.part in ("middle", END) and style.folded:
            return deviation_scale(width)
        return 1.0

    def document(self) -> dict[str, dict[str, dict[str, float]]]:
        """By layer and part."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for (layer, part), gap in self._gaps.items():
            found.setdefault(layer, {})[part] = gap.document()
        return found


def _halved(description: Description, layer: int) -> bool:
    """Does the second product read an activation less half of what that is taken of?"""
    style = preset_of(description.preset).style.chosen(description.choices_of(layer))
    stage = Stage(causal=generates(description.architecture))
    return style.halves(description.dimensions.activation, stage)


def _standardised(x: Tensor, d: Dimensions) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], eps=d.epsilon)


def gaps_of(description: Description, trial: Trial, encoded: Tensors) -> tuple[float, dict[str, dict[str, Any]]]:
    """The answers' loss, and by layer and part how far the program is from floats."""
    gaps = Gaps(description, trial)
    return trial.loss(description, encoded, gaps), gaps.document()

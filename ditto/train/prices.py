"""Prices of ranges, measured from the cost model: a layer is compiled again with each of its ranges made smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ditto.engine.plan import WHOLE_MB, Plan
from ditto.errors import RangeError
from ditto.functions.fit import Fitting
from ditto.models.description import Description, LayerRanges, Neurons, NormRange, ScoreRange
from ditto.models.ranges import CLASSES, GELU_MARGIN, SCORE_MARGIN, VARIANCE_MARGIN, Seen
from ditto.models.registry import architecture_of
from ditto.train.penalty import KNOBS, SCORES, VARIANCES, Prices

# octaves by which ranges are made smaller; those of one group together, since a narrower type may need them all
GROUPS = (((*SCORES, "qkv"), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)), *(((name,), (1.0, 2.0)) for name in VARIANCES))
LEAST = 0.01  # of the whole program's bytes: what all neurons' prices come to at least, where a range is wanted
NEVER = 1e9  # octaves or units: a range that costs nothing more


def dealt(description: Description, seq: int) -> int:
    """Bytes from the dealer for one text of `seq` tokens, as the program states them."""
    architecture = architecture_of(description.architecture)
    return architecture.compile(description, Plan(1, seq, hold_mb=WHOLE_MB), fits=Fitting()).cost().dealer


class Pricing:
    """Prices of one model's ranges for texts of `seq` tokens. Measured layers are kept from call to call."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self._known: dict[str, float] = {}

    def prices(self, description: Description, seen: Seen, most: float | None = None, cheap: bool = True) -> Prices:
        """By the ranges of a description and what they were calibrated on; neurons in the order of `seen`.

        `most`: what |x| before the activation must not exceed, whatever that saves; not `cheap`: nothing else counts.
        """
        total = dealt(description, self._seq)
        layers = range(description.dimensions.layers)
        neurons, knobs = (
            [self._neurons(description, i, seen) for i in layers],
            [self._knobs(description, i) for i in layers],
        )
        ends, prices = (torch.stack(part) for part in zip(*neurons, strict=True))
        targets, octaves = (torch.stack(part) for part in zip(*knobs, strict=True))
        if most is not None:
            ends = ends.clamp(max=most) if cheap else torch.full_like(ends, most)
            prices = prices.clamp(min=LEAST * total / prices.numel())
        return Prices(ends, prices, targets, octaves if cheap else torch.zeros_like(octaves), float(total))

    def _cost(self, description: Description, layer: LayerRanges, choices: int) -> float:
        """Of a model of that layer alone; infinite where its ranges fit no type."""
        one = description.model_copy(
            update={
                "dimensions": description.dimensions.model_copy(update={"layers": 1}),
                "ranges": description.ranges.model_copy(update={"layers": (layer,)}),
                "choices": description.choices[choices : choices + 1],
            }
        )
        key = f"{layer.model_dump_json()} {one.choices}"
        if key not in self._known:
            try:
                self._known[key] = float(dealt(one, self._seq))
            except RangeError:
                self._known[key] = math.inf
        return self._known[key]

    def _neurons(self, description: Description, i: int, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """1. Bytes of a neuron by the class of its range, up to the widest that there is here: as in the first layer.
        2. For each class above the cheapest one: bytes beyond it, over what lies between their ends.
        3. A neuron's price is that of its class, or of the first one above the cheapest."""
        first, inner = description.ranges.layers[0], description.dimensions.inner
        found = seen.neurons(i).cpu()
        ends = [(end - seen.added(i)) / GELU_MARGIN for end in CLASSES]  # of what is seen
        widest = float(found.max())
        last = next((k for k, end in enumerate(ends) if end >= widest), len(ends) - 1)
        # 1
        cost = []
        for bound in CLASSES[: max(2, last + 1)]:
            alike = first.model_copy(update={"neurons": (Neurons(count=inner, bound=bound),)})
            cost.append(self._cost(description, alike, 0) / inner)
        # 2
        slopes = [max(0.0, (cost[k] - cost[0]) / (ends[k] - ends[0])) for k in range(1, len(cost))]
        # 3
        classes = torch.bucketize(found, torch.tensor(ends[1 : len(cost)])).clamp(max=len(slopes) - 1)
        return torch.full((inner,), ends[0]), torch.tensor(slopes)[classes]

    def _knobs(self, description: Description, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """1. Of each group: the octaves that save the most bytes for each octave.
        2. Ranges of the group that save nothing of it cost nothing; the others share the price."""
        layer = description.ranges.layers[i]
        base = self._cost(description, layer, i)
        targets, prices = dict.fromkeys(KNOBS, NEVER), dict.fromkeys(KNOBS, 0.0)
        for group, tried in GROUPS:
            # 1
            saved = {octaves: base - self._smaller(description, i, group, octaves) for octaves in tried}
            best = max(saved, key=lambda octaves: saved[octaves] / octaves)
            if not 0 < saved[best] < math.inf:
                continue
            # 2
            needed = [
                name for name in group
                if len(group) == 1
                or base - self._smaller(description, i, [x for x in group if x != name], best) < saved[best]
            ] or list(group)  # fmt: skip
            for name in needed:
                targets[name] = _log2_seen(layer, name) - best
                prices[name] = saved[best] / best / len(needed)
        return torch.tensor(list(targets.values())), torch.tensor(list(prices.values()))

    def _smaller(self, description: Description, i: int, names: Sequence[str], octaves: float) -> float:
        layer = description.ranges.layers[i]
        for name in names:
            layer = _SMALLER[name](layer, 2.0**-octaves)
        return self._cost(description, layer, i)


def widest_seen(description: Description) -> float:
    """The largest |x| before an activation that calibration saw."""
    return max(layer.activation for layer in description.ranges.layers) / GELU_MARGIN


def _log2_seen(layer: LayerRanges, name: str) -> float:
    """As `Prices.knobs` counts it: what calibration saw, its margin taken off."""
    if name in SCORES:
        return math.log2(max(getattr(layer.scores, name), 1e-6) / SCORE_MARGIN)
    if name == "qkv":
        return math.log2(layer.qkv / SCORE_MARGIN)
    norm, _, end = name.partition(" ")
    least, most = getattr(layer, norm).variance
    return math.log2(most / VARIANCE_MARGIN) if end == "most" else -math.log2(least * VARIANCE_MARGIN)


def _scores(name: str) -> Callable[[LayerRanges, float], LayerRanges]:
    def smaller(layer: LayerRanges, factor: float) -> LayerRanges:
        scores: ScoreRange = layer.scores.model_copy(update={name: getattr(layer.scores, name) * factor})
        return layer.model_copy(update={"scores": scores})

    return smaller


def _variance(norm: str, end: str) -> Callable[[LayerRanges, float], LayerRanges]:
    def smaller(layer: LayerRanges, factor: float) -> LayerRanges:
        found: NormRange = getattr(layer, norm)
        least, most = found.variance
        kept = (least, max(least, most * factor)) if end == "most" else (min(most, least / factor), most)
        return layer.model_copy(update={norm: found.model_copy(update={"variance": kept})})

    return smaller


def _qkv(layer: LayerRanges, factor: float) -> LayerRanges:
    return layer.model_copy(update={"qkv": layer.qkv * factor})


_SMALLER: dict[str, Callable[[LayerRanges, float], LayerRanges]] = {
    **{name: _scores(name) for name in SCORES},
    "qkv": _qkv,
    **{name: _variance(*name.split(" ")) for name in VARIANCES},
}

"""What ranges cost, as a penalty: the largest values of each text beyond cheaper ranges, by prices in dealt bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ditto.models.ranges import HIDDEN_SCORE

Tensor = torch.Tensor
TOP = 8  # one in so many texts of a batch, those with the largest values, is what the penalty is of
SCORES = ("above", "below", "spread")
VARIANCES = ("norm1 most", "norm1 least", "norm2 most", "norm2 least")
KNOBS = (*SCORES, "qkv", *VARIANCES)  # of a layer, beside its neurons
TINY = 1e-12
PARTS = ("neurons", "neuron_prices", "knobs", "knob_prices")


@dataclass
class Prices:
    """Bytes from the dealer that a layer's ranges cost beyond cheaper ones, as measured of programs.

    `neurons`, `neuron_prices` [layers, inner]: the largest |x| before the activation that its cheapest range has, and
    bytes for each unit above. `knobs`, `knob_prices` [layers, KNOBS]: log2 of a cheaper largest value (of "least":
    of 1 / the least), and bytes for each octave above. `total`: bytes of the whole program.
    """

    neurons: Tensor
    neuron_prices: Tensor
    knobs: Tensor
    knob_prices: Tensor
    total: float

    def to(self, device: torch.device) -> Prices:
        return Prices.of({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """As `of` takes them."""
        total = torch.tensor(self.total, dtype=torch.float64)
        return {name: getattr(self, name) for name in PARTS} | {"total": total}

    def ordered(self, orders: Sequence[Tensor]) -> Prices:
        """With each layer's neurons in another order."""
        picked = [torch.stack([row[order] for row, order in zip(part, orders, strict=True)])
                  for part in (self.neurons, self.neuron_prices)]  # fmt: skip
        return replace(self, neurons=picked[0], neuron_prices=picked[1])

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Prices:
        neurons, neuron_prices, knobs, knob_prices = (tensors[name] for name in PARTS)
        return cls(neurons, neuron_prices, knobs, knob_prices, float(tensors["total"]))


class Watched:
    """An `Observe` that keeps what the penalty needs, with gradients: the largest values of each text. `norms`: a
    block's LayerNorms by the names under which they are observed.

    `neurons`: by layer [B, inner]; `knobs`: by layer and name [B], as `Prices.knobs` counts them.
    """

    def __init__(self, norms: tuple[str, str]) -> None:
        self._norms = {f"{name}.in": f"norm{i}" for i, name in enumerate(norms, 1)}
        self.neurons: dict[int, Tensor] = {}
        self.knobs: dict[tuple[int, str], Tensor] = {}

    def __call__(self, layer: int, name: str, x: Tensor) -> None:
        match name:
            case "activation":
                self.neurons[layer] = x.abs().amax(1)
            case "masked scores":
                self._scores(layer, x)
            case "qkv":
                most = x.flatten(1).abs().amax(1).log2()
                before = self.knobs.get((layer, name))
                self.knobs[layer, name] = most if before is None else torch.maximum(before, most)
            case _ if name in self._norms and layer >= 0:
                variance = x.var(-1, unbiased=False)
                self.knobs[layer, f"{self._norms[name]} most"] = variance.amax(1).log2()
                self.knobs[layer, f"{self._norms[name]} least"] = -variance.amin(1).log2()

    def _scores(self, layer: int, x: Tensor) -> None:
        """As calibration sees them: less that of the first key, padding's as a key left out."""
        hidden, shifted = x <= HIDDEN_SCORE / 2, x - x[..., :1]
        most = shifted.masked_fill(hidden, -torch.inf).amax(-1)
        least = shifted.masked_fill(hidden, torch.inf).amin(-1)
        for name, found in zip(SCORES, (most, -least, most - least), strict=True):
            self.knobs[layer, name] = found.flatten(1).amax(1).clamp_min(TINY).log2()


def penalty(seen: Watched, prices: Prices) -> Tensor:
    """The part of a program's dealt bytes that ranges beyond cheaper ones would cost, were they those of this batch.

    For layer i, neuron j with price p and cheap range c: sum p_ij mean_top relu(max_t |h_btj| - c_ij), mean_top over
    the B / TOP texts with the largest of them; likewise for each knob, in octaves. Divided by the program's bytes.
    """
    total = torch.zeros((), device=prices.neurons.device)
    for i, neurons in seen.neurons.items():
        total = total + _top(neurons - prices.neurons[i]) @ prices.neuron_prices[i]
        knobs = torch.stack([seen.knobs[i, name] for name in KNOBS], 1)
        total = total + _top(knobs - prices.knobs[i]) @ prices.knob_prices[i]
    return total / prices.total


def _top(excess: Tensor) -> Tensor:
    """[B, n] -> the mean of the largest few of each column, 0 for what is below 0: [n]."""
    count = max(1, excess.shape[0] // TOP)
    return excess.topk(count, 0).values.relu().mean(0)

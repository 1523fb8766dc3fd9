"""Training GPT-2 on plain text: AdamW, warm-up and cosine, deterministic, to be stopped and resumed anywhere."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from ditto.errors import UsageError
from ditto.models.description import Dimensions, explain
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import forward, logits
from ditto.models.gpt2.weights import shapes
from ditto.train.adamw import AdamW, Changed, learning_rate
from ditto.train.output_loss import output_loss
from ditto.train.perplexity import cross_entropy
from ditto.train.run import Watch, digest
from ditto.train.text import Order

Tensor = torch.Tensor
BETAS, DECAY = (0.9, 0.95), 0.1
WARM, FINAL = 20, 0.1  # one of so many steps warms up; the learning rate at the end, of the highest


@dataclass(frozen=True)
class Settings:
    """What decides the weights, besides the texts and the start: a run is resumed under the same only."""

    steps: int
    batch: int
    context: int
    lr: float
    seed: int
    validate_every: int
    bf16: bool = False


def new_dimensions(vocabulary: int, layers: int, hidden: int, heads: int, context: int) -> Dimensions:
    """A GPT-2 of these sizes. Raises UsageError."""
    try:
        return Dimensions(
            hidden=hidden, layers=layers, heads=heads, inner=4 * hidden, vocabulary=vocabulary, positions=context,
            embedding=hidden, epsilon=1e-5, activation="tanh gelu",
        )  # fmt: skip
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def new_weights(d: Dimensions, seed: int) -> dict[str, Tensor]:
    """GPT-2's initialization: 0.02, what is added to the residual stream less by the square root of its terms."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes(d).items():
        if len(shape) == 2:
            deviation = 0.02 / math.sqrt(2 * d.layers) if "c_proj" in name else 0.02
            tensors[name] = deviation * torch.randn(shape, generator=generator)
        else:
            tensors[name] = torch.full(shape, 1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    return tensors


class LanguageTrainer(Changed):
    """A `Trainer` of a GPT-2. `tokenizer`: the directory whose files go into the checkpoint."""

    def __init__(
        self, tensors: dict[str, Tensor], dimensions: Dimensions, train: Tensor, valid: Tensor, settings: Settings,
        tokenizer: Path, device: str = "cpu",
    ) -> None:  # fmt: skip
        if settings.context > dimensions.positions:
            raise UsageError(f"context {settings.context}: this model has {dimensions.positions} positions")
        self.dimensions, self.settings, self.device = dimensions, settings, torch.device(device)
        self.steps, self.validate_every = settings.steps, settings.validate_every
        self.order, self.valid = Order(train, settings.context, settings.seed), valid
        self.identity = asdict(settings) | {"model": dimensions.model_dump(mode="json")}
        self.identity |= {"weights": digest(tensors.values())}
        self.identity |= {"train": digest([train]), "valid": digest([valid])}
        self._tokenizer = tokenizer
        super().__init__(AdamW(tensors, self.device, BETAS, DECAY))

    def step(self) -> float:
        settings, at = self.settings, self.at
        ids, targets = self.order.batch(at.step * settings.batch, settings.batch)
        hidden = forward(self.tensors, self.dimensions, ids.to(self.device))
        words = self.tensors["wte.weight"]
        loss = output_loss(hidden.flatten(0, 1), words, targets.flatten().to(self.device), bf16=settings.bf16)
        rate = learning_rate(at.step, self.steps, settings.lr, self.steps // WARM, "cosine", FINAL)
        return self._adamw.update(loss, rate, at)

    def logits(self, ids: Tensor) -> Tensor:
        return logits(self.tensors, forward(self.tensors, self.dimensions, ids.to(self.device)))

    def loss_on(self, ids: Tensor, watch: Watch | None = None) -> float:
        return cross_entropy(self.logits, ids, self.settings.context, watch=watch)[0]

    def validate(self, watch: Watch | None = None) -> float:
        return self.loss_on(self.valid, watch)

    def better(self, new: float, old: float) -> bool:
        return new < old

    def write(self, directory: Path) -> None:
        save_gpt2(directory, self.dimensions, self.tensors, self._tokenizer)

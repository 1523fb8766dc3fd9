"""Fine-tuning an encoder on labelled texts, in floats: classification, regression, similarity of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ditto.errors import BadCheckpoint, UsageError
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.encoder import Encoder
from ditto.models.encoder.floats import Drop, forward, whole
from ditto.models.export import save_encoder
from ditto.models.ranges import silent
from ditto.models.registry import architecture_of, sibling
from ditto.models.tensors import read_tensors, without_prefix
from ditto.models.tokenizer import Batch
from ditto.train.adamw import AdamW, Changed, learning_rate
from ditto.train.batches import Labelled, LengthOrder, by_length
from ditto.train.objective import Objective
from ditto.train.run import Watch, digest
from ditto.train.seeds import generator

Tensor = torch.Tensor
BETAS, DECAY = (0.9, 0.999), 0.01
WARM = 10  # one of so many steps warms up
DEVIATION = 0.02  # of new weights
AT_ONCE = 32  # examples in a batch of a validation


@dataclass(frozen=True)
class Settings:
    """What decides the weights, besides the texts and the start: a run is resumed under the same only.

    `context`: tokens of a row at most. `dropout`: the part of the embeddings, and of what each block adds to them,
    that is left out of a step.
    """

    steps: int
    batch: int
    context: int
    lr: float
    seed: int
    validate_every: int
    dropout: float = 0.1
    schedule: Literal["linear", "cosine"] = "linear"


def start(directory: Path, objective: Objective, seed: int, score: float = 0.0) -> Checkpoint:
    """A pretrained encoder with the objective's head.

    A module of the head is the checkpoint's where that has it in the same shape (BERT's pooler); else it is new:
    weights of deviation 0.02, no bias. A new head for scores begins at `score`. Raises UsageError for what is no
    encoder, and what `load_checkpoint` raises.
    """
    source = load_checkpoint(directory)
    name = sibling(source.class_name, objective.head)
    trained = {"labels": objective.labels, "pooling": "mean", "normalize": False}  # whatever it was before
    trained |= {"problem_type": "single_label_classification"}
    architecture, d = architecture_of(name), source.dimensions.model_copy(update=trained)
    tokens = source.tokenizer().size
    if tokens > d.vocabulary:
        raise BadCheckpoint(f"{directory}: a tokenizer of {tokens:,} ids, a model of {d.vocabulary:,} embeddings")
    assert isinstance(architecture, Encoder)
    raw = without_prefix(read_tensors(directory), architecture.prefixes)
    shapes, tensors, random = architecture.shapes(d), dict(source.tensors), generator(seed, "head")
    for theirs, ours in architecture.head.names().items():
        parts = {part: shapes[f"{ours}.{part}"] for part in ("weight", "bias")}
        kept = {part: raw[f"{theirs}.{part}"] for part in parts if f"{theirs}.{part}" in raw}
        if all(part in kept and kept[part].shape == shape for part, shape in parts.items()):
            made = kept
            if not all(bool(tensor.isfinite().all()) for tensor in made.values()):
                raise BadCheckpoint(f"{directory}: {theirs}: infinite, or no number")
        else:
            first = score if objective.labels and not objective.task.labels and ours == "classifier" else 0.0
            made = {
                "weight": DEVIATION * torch.randn(parts["weight"], generator=random),
                "bias": torch.full(parts["bias"], first),
            }
        tensors |= {f"{ours}.{part}": tensor for part, tensor in made.items()}
    return Checkpoint(name, d, {name: tensors[name] for name in shapes}, directory)


class LabelTrainer(Changed):
    """A `Trainer` of an encoder on labelled texts."""

    def __init__(
        self, checkpoint: Checkpoint, objective: Objective, train: Labelled, valid: Labelled, settings: Settings,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        """`checkpoint` has the objective's head (`start`); its directory gives configuration and tokenizer."""
        architecture, d = checkpoint.architecture, checkpoint.dimensions
        if not isinstance(architecture, Encoder) or checkpoint.directory is None:
            raise UsageError(f"{checkpoint.class_name}: an encoder with its tokenizer expected")
        if settings.context > d.positions:
            raise UsageError(f"context {settings.context}: this model has {d.positions} positions")
        self.checkpoint, self.objective, self.settings = checkpoint, objective, settings
        self._architecture, self._source, self.device = architecture, checkpoint.directory, torch.device(device)
        self.steps, self.validate_every = settings.steps, settings.validate_every
        self.train, self.valid = train, valid
        self.order = LengthOrder(train.lengths, settings.batch, settings.seed)
        self.identity = asdict(settings) | {"model": d.model_dump(mode="json"), "class": checkpoint.class_name}
        self.identity |= {"task": asdict(objective)}
        self.identity |= {"weights": digest(tensor for _, tensor in sorted(checkpoint.tensors.items()))}
        self.identity |= {"train": train.digest(), "valid": valid.digest()}
        super().__init__(AdamW(checkpoint.tensors, self.device, BETAS, DECAY))

    def answers(self, batch: Batch, drop: Drop = whole) -> Tensor:
        """[examples, labels], as `Objective.answers`."""
        d = self.checkpoint.dimensions
        hidden = forward(self.tensors, d, batch, silent, drop)
        return self.objective.answers(self._architecture.head.floats(self.tensors, hidden, silent), batch)

    def step(self) -> float:
        settings, at = self.settings, self.at
        batch, labels = self.train.batch(self.order.at(at.step), self.device)
        drop = dropping(settings.dropout, generator(settings.seed, f"step {at.step}", self.device))
        loss = self.objective.loss(self.answers(batch, drop), labels)
        rate = learning_rate(at.step, self.steps, settings.lr, self.steps // WARM, settings.schedule)
        return self._adamw.update(loss, rate, at)

    def measure(self, data: Labelled, watch: Watch | None = None) -> float:
        """The task's metric of the present weights on labelled texts."""
        order = by_length(data.lengths, AT_ONCE)
        found, true = [], []
        with torch.inference_mode():
            for done, picked in enumerate(order, 1):
                batch, labels = data.batch(picked, self.device)
                found.append(self.answers(batch).cpu())
                true.append(labels.cpu())
                if watch:
                    watch(done, len(order))
        return self.objective.metric(torch.cat(found), torch.cat(true))

    def validate(self, watch: Watch | None = None) -> float:
        return self.measure(self.valid, watch)

    def better(self, new: float, old: float) -> bool:
        return new > old

    def write(self, directory: Path) -> None:
        save_encoder(replace(self.checkpoint, tensors=self.tensors), directory, self._source, **self._kind())

    def _kind(self) -> dict[str, str]:
        if not self.objective.labels:
            return {}
        return {"problem_type": "single_label_classification" if self.objective.task.labels else "regression"}


def dropping(part: float, random: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Inverted dropout (Srivastava et al. 2014): zeros in this part of the places, the others larger for it."""
    if not part:
        return whole

    def drop(x: Tensor) -> Tensor:
        kept = torch.empty_like(x, requires_grad=False).bernoulli_(1 - part, generator=random)
        return x * kept.div_(1 - part)

    return drop

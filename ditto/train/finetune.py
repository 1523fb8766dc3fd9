"""Training GPT-2 on plain text: AdamW, warm-up and cosine, deterministic, to be stopped and resumed anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from ditto.errors import UsageError
from ditto.models.checkpoint import load_checkpoint
from ditto.models.description import Dimensions, explain
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import forward, logits
from ditto.models.gpt2.weights import shapes
from ditto.train import training_state
from ditto.train.output_loss import output_loss
from ditto.train.perplexity import Watch, cross_entropy
from ditto.train.text import Order

Tensor = torch.Tensor
BETAS, DECAY, CLIP, FINAL = (0.9, 0.95), 0.1, 1.0, 0.1  # FINAL: the learning rate at the end, of the highest
RECENT = 100  # steps over which the training loss is averaged for display


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


@dataclass
class Position:
    """How far a run is; with weights and moments, all that there is to save."""

    step: int = 0
    validated: int = 0  # the step of the last validation
    best: float | None = None  # the lowest validation loss, of the weights in the checkpoint
    recent: list[float] = field(default_factory=list)


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


class Trainer:
    """One run: weights and moments on a device, the texts, the position. Files are `Run`'s."""

    def __init__(
        self, tensors: dict[str, Tensor], dimensions: Dimensions, train: Tensor, valid: Tensor, settings: Settings,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        if settings.context > dimensions.positions:
            raise UsageError(f"context {settings.context}: this model has {dimensions.positions} positions")
        self.dimensions, self.settings, self.device = dimensions, settings, torch.device(device)
        self.order, self.valid = Order(train, settings.context, settings.seed), valid
        # what a resumed run must have in common with the one that it goes on with
        self.identity = asdict(settings) | {"model": dimensions.model_dump(mode="json")}
        self.identity |= {"weights": _digest(tensors.values())}
        self.identity |= {"train": _digest([train]), "valid": _digest([valid])}
        self.tensors = {name: t.to(self.device, torch.float32).clone() for name, t in tensors.items()}
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        matrices = [t for t in self.tensors.values() if t.dim() == 2]
        vectors = [t for t in self.tensors.values() if t.dim() != 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, fused=True)
        self.at = Position()

    def lr(self, step: int) -> float:
        """Linear warm-up over a twentieth of the steps, then a cosine to a tenth."""
        warm = max(1, self.settings.steps // 20)
        if step < warm:
            return self.settings.lr * (step + 1) / warm
        done = (step - warm) / max(1, self.settings.steps - warm)
        return self.settings.lr * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * done)))

    def step(self) -> float:
        """One update; the loss before it."""
        settings = self.settings
        ids, targets = self.order.batch(self.at.step * settings.batch, settings.batch)
        hidden = forward(self.tensors, self.dimensions, ids.to(self.device))
        words = self.tensors["wte.weight"]
        loss = output_loss(hidden.flatten(0, 1), words, targets.flatten().to(self.device), bf16=settings.bf16)
        self.optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise UsageError(f"training diverged at step {self.at.step:,}: a lower --lr may help")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.at.step)
        self.optimizer.step()
        self.at.step += 1
        self.at.recent = [*self.at.recent[1 - RECENT :], float(loss.detach())]
        return self.at.recent[-1]

    def logits(self, ids: Tensor) -> Tensor:
        return logits(self.tensors, forward(self.tensors, self.dimensions, ids.to(self.device)))

    def loss_on(self, ids: Tensor, watch: Watch | None = None) -> float:
        return cross_entropy(self.logits, ids, self.settings.context, watch=watch)[0]

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        found = {f"weight/{name}": t.detach() for name, t in self.tensors.items()}
        for name, tensor in self.tensors.items():
            moments = self.optimizer.state.get(tensor, {})
            found |= {f"{part}/{name}": moments[part] for part in ("exp_avg", "exp_avg_sq") if part in moments}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])

    def restore(self, state: dict[str, Tensor], at: Position) -> None:
        """Raises KeyError, ValueError for what is not this model's state."""
        kinds = ("weight", "exp_avg", "exp_avg_sq") if at.step else ("weight",)
        for name, tensor in self.tensors.items():
            for kind in kinds:
                if state[f"{kind}/{name}"].shape != tensor.shape:
                    raise ValueError(f"{kind}/{name} has another shape")
        self.at = at
        self.load({name: state[f"weight/{name}"] for name in self.tensors})
        if at.step:
            for name, tensor in self.tensors.items():
                self.optimizer.state[tensor] = {"step": torch.tensor(float(at.step), device=self.device)} | {
                    part: state[f"{part}/{name}"].to(self.device) for part in ("exp_avg", "exp_avg_sq")
                }


def _position(found: dict[str, Any], steps: int) -> Position:
    """Raises ValueError."""
    at = TypeAdapter(Position).validate_json(json.dumps(found), strict=True)
    if not 0 <= at.validated <= at.step <= steps:
        raise ValueError(f"step {at.step} of {steps}")
    return at


def _digest(tensors: Any) -> str:
    """A name for tensors by their content."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


class Stopped(Exception):
    """Training was asked to stop during a validation, which is made again when it goes on."""


class Run:
    """A trainer and its directory: the checkpoint with the lowest validation loss, and `.training/` to go on from."""

    def __init__(self, trainer: Trainer, directory: Path, tokenizer: Path, save_every: float = 180.0) -> None:
        """Goes on where `directory` stopped. Raises UsageError where it was started with other settings."""
        self.trainer, self.directory, self._tokenizer = trainer, directory, tokenizer
        self._save_every, self._saved = save_every, time.monotonic()
        self.resumed = training_state.load(directory, trainer.identity)
        if self.resumed:
            try:
                trainer.restore(self.resumed.tensors, _position(self.resumed.position, trainer.settings.steps))
            except (LookupError, TypeError, ValueError) as error:
                raise UsageError(f"{directory}: a damaged state of training: {error}; name another --out") from None
            self.resumed.tensors.clear()
        self.seconds = 0.0  # spent on training steps by this process
        self.began = trainer.at.step

    @property
    def finished(self) -> bool:
        at, steps = self.trainer.at, self.trainer.settings.steps
        return at.step == at.validated == steps

    def go(
        self,
        stop: Callable[[], bool],
        on_step: Callable[[float], None] = lambda loss: None,
        on_validation: Callable[[float | None, int, int], None] = lambda loss, done, windows: None,
        abandon: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end or until `stop`, which is asked between steps; `abandon` also ends a validation.

        The state is saved either way. Returns whether the end was reached. `on_validation` gets no loss while one runs.
        """
        trainer, settings = self.trainer, self.trainer.settings
        at = trainer.at

        def watch(done: int, windows: int) -> None:
            on_validation(None, done, windows)
            if abandon():
                raise Stopped

        self.save()  # from here on, what lies in the directory is known to be this run's
        try:
            while True:
                due = at.step == settings.steps or (at.step > 0 and at.step % settings.validate_every == 0)
                if due and at.validated != at.step:
                    loss = trainer.loss_on(trainer.valid, watch)
                    if at.best is None or loss < at.best:
                        self._write()  # before the state says so: whoever is cut off here does it again
                        at.best = loss
                    at.validated = at.step
                    self.save()
                    on_validation(loss, 1, 1)
                if at.step == settings.steps or stop() or abandon():
                    break
                began = time.monotonic()
                loss = trainer.step()
                self.seconds += time.monotonic() - began
                on_step(loss)
                if time.monotonic() - self._saved > self._save_every:
                    self.save()
        except Stopped:
            pass
        self.save()
        return self.finished

    def validate_early(self, watch: Watch | None = None) -> float:
        """After a stop: put the present weights into the checkpoint if they are the best.

        A run that goes on forgets this (the former best lies in `.training/` meanwhile), so that it ends as one that
        was never stopped. Returns the loss of what the checkpoint holds.
        """
        at = self.trainer.at
        loss = self.trainer.loss_on(self.trainer.valid, watch)
        if at.best is not None and loss >= at.best:
            return at.best
        if at.best is not None:
            training_state.set_aside(self.directory)
        self._write()
        return loss

    def loss_of_checkpoint(self, ids: Tensor) -> float:
        """The loss, on another text, of what the checkpoint holds."""
        self.trainer.load(load_checkpoint(self.directory).tensors)
        return self.trainer.loss_on(ids)

    def save(self) -> None:
        training_state.save(self.directory, self.trainer.identity, asdict(self.trainer.at), self.trainer.state())
        self._saved = time.monotonic()

    def _write(self) -> None:
        save_gpt2(self.directory, self.trainer.dimensions, self.trainer.tensors, self._tokenizer)

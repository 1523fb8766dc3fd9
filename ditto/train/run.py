"""A run of training, whatever is trained: stopped and resumed anywhere, the best weights kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import TypeAdapter

from ditto.errors import UsageError
from ditto.train import training_state

Tensor = torch.Tensor
Watch = Callable[[int, int], None]  # done, of how many
RECENT = 100  # steps over which the training loss is averaged for display


@dataclass
class Position:
    """How far a run is; with the trainer's state, all that there is to save."""

    step: int = 0
    validated: int = 0  # the step of the last validation
    best: float | None = None  # what the validation of the weights in the checkpoint gave
    recent: list[float] = field(default_factory=list)

    def passed(self, loss: float) -> float:
        """A step is done, with this loss before it."""
        self.step += 1
        self.recent = [*self.recent[1 - RECENT :], loss]
        return loss

    @property
    def loss(self) -> float | None:
        """The mean over the last steps."""
        return sum(self.recent) / len(self.recent) if self.recent else None


class Trainer(Protocol):
    """What `Run` runs: weights and moments on a device, what they are trained on, the position. It writes no file but
    when `write` is called.

    `identity`: all that decides the weights at the end, as JSON takes it: settings by name, digests of texts and of the
    weights at the start (`digest`). A run is resumed under the same only. Keys are put into words in
    `training_state.WORDS`. `at` is the same object until `restore` replaces it.
    """

    identity: dict[str, Any]
    steps: int
    validate_every: int
    at: Position

    def step(self) -> float:
        """One update; the loss before it. It depends on `state`, `at` and nothing else that changes, and ends with
        `at.passed(loss)`. Raises UsageError, with weights as they were, where the loss is no number."""

    def validate(self, watch: Watch | None = None) -> float:
        """The present weights' figure, which `better` compares. `watch` may raise."""

    def better(self, new: float, old: float) -> bool:
        """Does a validation's figure replace the best one before it?"""

    def state(self) -> dict[str, Tensor]:
        """By name, on any device: what `restore` takes."""

    def restore(self, state: dict[str, Tensor], at: Position) -> None:
        """Raises LookupError, TypeError or ValueError for what is not this trainer's state."""

    def write(self, directory: Path) -> None:
        """The present weights as a checkpoint, whose tensors are `training_state.MODEL`; each file is replaced as a
        whole, that one last."""


T = TypeVar("T", bound=Trainer)


class Stopped(Exception):
    """Training was asked to stop during a validation, which is made again when it goes on."""


class Run(Generic[T]):
    """A trainer and its directory: the checkpoint with the best validation, and `.training/` to go on from."""

    def __init__(self, trainer: T, directory: Path, save_every: float = 180.0) -> None:
        """Goes on where `directory` stopped. Raises UsageError where it was started with other settings."""
        self.trainer, self.directory = trainer, directory
        self._save_every, self._saved = save_every, time.monotonic()
        found = training_state.load(directory, trainer.identity)
        self.resumed = found is not None
        if found:
            try:
                trainer.restore(found.tensors, _position(found.position, trainer.steps))
            except (LookupError, TypeError, ValueError) as error:
                raise UsageError(f"{directory}: a damaged state of training: {error}; name another --out") from None
        self.seconds = 0.0  # spent on training steps by this process
        self.began = trainer.at.step

    @property
    def finished(self) -> bool:
        at = self.trainer.at
        return at.step == at.validated == self.trainer.steps

    def go(
        self,
        stop: Callable[[], bool],
        on_step: Callable[[float], None] = lambda loss: None,
        on_validation: Callable[[float | None, int, int], None] = lambda found, done, parts: None,
        abandon: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end or until `stop`, which is asked between steps; `abandon` also ends a validation.

        The state is saved either way. Returns whether the end was reached. `on_validation` gets None while one runs.
        """
        trainer, at = self.trainer, self.trainer.at

        def watch(done: int, parts: int) -> None:
            on_validation(None, done, parts)
            if abandon():
                raise Stopped

        self.save()  # from here on, what lies in the directory is known to be this run's
        try:
            while True:
                due = at.step == trainer.steps or (at.step > 0 and at.step % trainer.validate_every == 0)
                if due and at.validated != at.step:
                    found = trainer.validate(watch)
                    if at.best is None or trainer.better(found, at.best):
                        trainer.write(self.directory)  # before the state says so: whoever is cut off here does it again
                        at.best = found
                    at.validated = at.step
                    self.save()
                    on_validation(found, 1, 1)
                if at.step == trainer.steps or stop() or abandon():
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
        was never stopped. Returns the figure of what the checkpoint holds.
        """
        at = self.trainer.at
        found = self.trainer.validate(watch)
        if at.best is not None and not self.trainer.better(found, at.best):
            return at.best
        if at.best is not None:
            training_state.set_aside(self.directory)
        self.trainer.write(self.directory)
        return found

    def save(self) -> None:
        training_state.save(self.directory, self.trainer.identity, asdict(self.trainer.at), self.trainer.state())
        self._saved = time.monotonic()


def _position(found: dict[str, Any], steps: int) -> Position:
    """Raises ValueError."""
    at = TypeAdapter(Position).validate_json(json.dumps(found), strict=True)
    if not 0 <= at.validated <= at.step <= steps:
        raise ValueError(f"step {at.step} of {steps}")
    return at


def digest(tensors: Iterable[Tensor]) -> str:
    """A name for tensors by their content."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]

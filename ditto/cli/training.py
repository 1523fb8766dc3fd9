"""Training at a terminal: signals that stop it, its progress, its end."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ditto.cli.common import err, note
from ditto.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from ditto.train.run import Run, Trainer

LINE_EVERY = 30.0  # seconds between lines where there is no terminal
T = TypeVar("T", bound="Trainer")


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def computing_on(device: Device, threads: int | None) -> None:
    """Have this process train there. Raises UsageError where that is not."""
    import torch

    from ditto.ring.malloc import tune_memory

    tune_memory()
    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here")
    if threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Options:
    """What every kind of training is told; None where the kind has a value of its own. `deadline` by time.monotonic."""

    out: Path
    steps: int | None
    epochs: float | None
    deadline: float
    batch: int | None
    context: int | None
    lr: float | None
    seed: int
    validations: int
    device: str
    json: bool

    def validate_every(self, steps: int) -> int:
        return max(1, -(-steps // self.validations))


class Reports(Generic[T]):
    """How a kind of training speaks of itself."""

    def step(self, run: "Run[T]") -> str:
        """Live figures after a step."""
        return f"loss {run.trainer.at.loss or 0.0:.4g}"

    def validation(self, run: "Run[T]", found: float) -> str:
        """What a validation gave."""
        return f"validation {found:.4f}"


def train(run: "Run[T]", reports: Reports[T], deadline: float, *, quiet: bool) -> float | None:
    """Train to the end, or until `deadline` by time.monotonic(): what the validation of the checkpoint's weights gave.

    Raises Interrupted after a signal, with all that is needed to go on saved.
    """
    at, steps = run.trainer.at, run.trainer.steps
    if run.resumed and not quiet:
        note(f"{run.directory}: going on at step {at.step:,} of {steps:,}")
    with _signals() as signalled, _Watcher(run, reports, quiet) as watcher:
        run.go(
            lambda: time.monotonic() > deadline, on_step=watcher.step, on_validation=watcher.validation,
            abandon=signalled,
        )  # fmt: skip
        if signalled():
            raise Interrupted(f"stopped at step {at.step:,} of {steps:,}; the same command goes on from there")
        if run.finished:
            return at.best
        best = run.validate_early(lambda done, parts: watcher.validation(None, done, parts))
        watcher.validation(best, 1, 1)
        return best


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop between two steps; a second one stops at once, with what was saved last."""
    seen: list[int] = []

    def handle(signum: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signum)

    before = {}
    for which in (signal.SIGINT, signal.SIGTERM):
        try:
            before[which] = signal.signal(which, handle)
        except ValueError:  # only the main thread may set handlers
            break
    try:
        yield lambda: bool(seen)
    finally:
        for which, former in before.items():
            signal.signal(which, former)


class _Watcher(Generic[T]):
    """Progress: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, run: "Run[T]", reports: Reports[T], quiet: bool) -> None:
        self._run, self._reports, self._quiet = run, reports, quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True) if err.is_terminal and not quiet else None
        self._line, self._valid = time.monotonic(), ""

    def __enter__(self) -> "_Watcher[T]":
        if self._bar:
            self._bar.start()
            trainer = self._run.trainer
            self._task = self._bar.add_task("training", total=trainer.steps, completed=trainer.at.step)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, loss: float) -> None:
        trainer = self._run.trainer
        text = self._reports.step(self._run) + self._valid
        if self._bar:
            self._bar.update(self._task, completed=trainer.at.step, description=text)
        elif not self._quiet and time.monotonic() - self._line > LINE_EVERY:
            self._line = time.monotonic()
            note(f"step {trainer.at.step:,} of {trainer.steps:,}: {text}")

    def validation(self, found: float | None, done: int, parts: int) -> None:
        if found is not None:
            self._valid = f", {self._reports.validation(self._run, found)}"
            if not self._bar and not self._quiet:
                note(f"step {self._run.trainer.at.step:,}: {self._reports.validation(self._run, found)}")
        elif self._bar:
            self._bar.update(self._task, description=f"validating: {done:,} of {parts:,}{self._valid}")

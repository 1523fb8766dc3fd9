"""Distillation: a copy of a teacher learns to answer alike in a preset's arithmetic, within ranges that cost little."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ditto.errors import UsageError
from ditto.files import make_directory
from ditto.models.calibrated import save_calibrated, weights_digest
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, parse
from ditto.models.importer import described
from ditto.models.ranges import silent
from ditto.models.tokenizer import Text
from ditto.train.adamw import AdamW, Course, learning_rate
from ditto.train.encoder_subject import EncoderSubject, Metric
from ditto.train.language_subject import LanguageSubject
from ditto.train.penalty import Prices, Watched, penalty
from ditto.train.prices import Pricing, dealt, widest_seen
from ditto.train.run import Position, Watch
from ditto.train.subject import Model, Subject

Tensor = torch.Tensor
STAGES = ("ranges", "layers", "logits")
BETAS, DECAY = (0.9, 0.999), 1e-4
SCHEDULES: tuple[tuple[float, Course], ...] = ((0.0, "constant"), (0.0, "constant"), (0.1, "linear"))  # warm-up, then
CALIBRATED = 512  # texts whose values give ranges
SYNC = 50  # steps between looks at the loss, on a device that would have to wait for each
STRONGER, WEAKER, WELL_BELOW = 1.5, 0.9, 0.95  # of the penalty, by what is predicted over what is wanted
MB = 1e6


@dataclass(frozen=True)
class Settings:
    """What decides the student, besides teacher and texts. Steps and learning rates are by stage, as STAGES has them.

    `budget_mb`: bytes from the dealer for one text of `seq` tokens, or of as many as the model takes; `max_range`: of
    |x| before activations. `strength`: of the penalty at the beginning (1), or all along where
    neither is given. `longest`: tokens of a text that is trained on,
    or of a window. `calibrated`: texts or windows of the training set that ranges are taken from.
    """

    preset: str = "ditto"
    steps: tuple[int, int, int] = (0, 0, 0)
    rates: tuple[float, float, float] = (1e-4, 5e-5, 1e-5)
    batch: int = 32
    longest: int = 128
    seed: int = 0
    budget_mb: float | None = None
    max_range: float | None = None
    seq: int = 128
    strength: float | None = None
    check_every: int = 200
    validate_every: int = 1000
    calibrated: int = CALIBRATED

    @property
    def bounded(self) -> bool:
        return self.budget_mb is not None or self.max_range is not None

    @property
    def penalized(self) -> bool:
        return self.bounded or self.strength is not None


@dataclass(frozen=True)
class Check:
    """Of the ranges that calibration found at a step: MB from the dealer, the widest |x| before an activation, and the
    penalty's strength up to there."""

    step: int
    mb: float
    widest: float
    strength: float


class Distiller:
    """One distillation: the student's weights and moments on a device, the texts, the position. A `Trainer`.

    1. Stage "ranges", in floats: hidden states, contexts and answers of the teacher, and the penalty on ranges.
    2. Stage "layers", in the preset's arithmetic: hidden states and contexts of all layers, by mean squares.
    3. Stage "logits", likewise: soft cross-entropy to the teacher's logits; mean squares of scores and embeddings.

    At the beginning of each stage and every `check_every` steps the student is calibrated anew (`check`).
    (Wu et al. 2024, Ditto, section 4.3; Li et al. 2023, MPCFormer, section 3.2.)
    """

    def __init__(
        self, subject: Subject, settings: Settings, device: str = "cpu",
        program: Callable[[Description], Model] | None = None,
    ) -> None:  # fmt: skip
        """`program` makes what the last two stages compute by the ranges: the preset's program itself."""
        if not any(settings.steps):
            raise UsageError("no step to do: all stages are empty")
        if settings.steps[1] and not subject.layered:
            raise UsageError("stage 1 is of encoders: a GPT-2's program shows its logits alone")
        self.subject, self.settings, self.device = subject, settings, torch.device(device)
        self._make = program or subject.program
        start, self._d = subject.student, subject.student.dimensions
        self.seq = min(settings.seq, self._d.positions)
        self._pricing = Pricing(self.seq)
        self.identity: dict[str, Any] = asdict(settings) | {"model": self._d.model_dump(mode="json")}
        self.identity |= {"weights": weights_digest(start.tensors)[:16]} | subject.identity
        self.steps, self.validate_every = sum(settings.steps), settings.validate_every
        self.at = Position()
        self.adamw = AdamW(start.tensors, self.device, BETAS, DECAY)
        self.checks: list[Check] = []
        self.description: Description | None = None
        self._prices: Prices | None = None
        self._student: Model | None = None
        self.strength, self._checked, self._loss = 1.0 if settings.strength is None else settings.strength, -1, math.nan

    @classmethod
    def on_texts(
        cls, teacher: Checkpoint, train: Sequence[Text], valid: Sequence[Text], settings: Settings,
        device: str = "cpu", metric: Metric | None = None,
    ) -> Distiller:  # fmt: skip
        """Of an encoder; as `EncoderSubject` has it."""
        subject = EncoderSubject(
            teacher, train, valid, settings.preset, batch=settings.batch, longest=settings.longest, seed=settings.seed,
            calibrated=settings.calibrated, device=device, metric=metric,
        )  # fmt: skip
        return cls(subject, settings, device)

    @classmethod
    def on_windows(
        cls, teacher: Checkpoint, train: Tensor, valid: Tensor, settings: Settings, device: str = "cpu"
    ) -> Distiller:
        """Of a GPT-2 on token ids, in windows of `settings.longest`; as `LanguageSubject` has it."""
        subject = LanguageSubject(
            teacher, train, valid, settings.preset, batch=settings.batch, context=settings.longest, seed=settings.seed,
            calibrated=settings.calibrated, device=device,
        )  # fmt: skip
        return cls(subject, settings, device)

    # Steps -----------------------------------------------------------------------------------------

    def stage(self, step: int) -> tuple[int, int]:
        """Number of the stage that a step belongs to, and of the step in it; the last one's at the end."""
        for number, count in enumerate(self.settings.steps):
            if step < count:
                return number, step
            step -= count
        last = max(i for i, count in enumerate(self.settings.steps) if count)
        return last, self.settings.steps[last]

    @property
    def stage_name(self) -> str:
        """Of the last step."""
        return STAGES[self.stage(max(self.at.step - 1, 0))[0]]

    def kept(self, check: Check) -> bool:
        """Are the ranges as asked for?"""
        return self._over(check) <= 1

    def step(self) -> float:
        """One update; the loss before it, or on another device than the processor that of up to SYNC steps ago."""
        stage, within = self.stage(self.at.step)
        if within % self.settings.check_every == 0 and self._checked != self.at.step:
            self.check(fresh=within == 0)
            self._checked = self.at.step
        batch = self.subject.batch(self.at.step)
        count, rate = self.settings.steps[stage], self.settings.rates[stage]
        warm, course = SCHEDULES[stage]
        with _tf32(self.device.type == "cuda" and stage == 0):
            loss = self._loss_of(stage, batch)
            self.adamw.descend(loss, learning_rate(within, count, rate, int(warm * count), course))
        if self.device.type == "cpu" or (self.at.step + 1) % SYNC == 0 or self.at.step + 1 == self.steps:
            self._loss = float(loss.detach())
            if not math.isfinite(self._loss):
                raise UsageError(f"training diverged by step {self.at.step:,}: a lower learning rate may help")
        return self.at.passed(self._loss)

    def _loss_of(self, stage: int, batch: Any) -> Tensor:
        subject, tensors = self.subject, self.adamw.tensors
        with torch.no_grad():
            wanted = subject.teacher(batch)
        watched = Watched(subject.norms) if self._prices else None
        if STAGES[stage] == "ranges":
            got = subject.in_floats(tensors, batch, watched or silent)
            loss = subject.layers_loss(got, wanted, batch) + subject.output_loss(got, wanted, batch)
        else:
            assert self._student is not None
            got = self._student(tensors, batch)
            loss = (subject.layers_loss if STAGES[stage] == "layers" else subject.output_loss)(got, wanted, batch)
            if watched:
                subject.in_floats(tensors, batch, watched)
        if watched and self._prices:
            loss = loss + self.strength * penalty(watched, self._prices)
        return loss

    # Ranges ----------------------------------------------------------------------------------------

    def calibrate(self) -> tuple[Description, list[Tensor], Prices | None]:
        """By the weights as they are: the description, the order of each block's neurons that it speaks of, and prices
        where there is a penalty, neurons in that order. Raises RangeError where ranges do not fit the preset's types.
        """
        tensors = {name: t.detach() for name, t in self.adamw.tensors.items()}
        seen = self.subject.seen(tensors)
        ranges = self.subject.ranges(tensors, seen)
        description = described(self.subject.student, "distilled", ranges, self.settings.preset)
        orders = [seen.order(i) for i in range(self._d.layers)]
        if not self.settings.penalized:
            return description, orders, None
        most = self.settings.max_range
        cheap = most is None or self.settings.budget_mb is not None
        prices = self._pricing.prices(description, seen, most, cheap).to(self.device)
        return description, orders, prices.ordered(orders)

    def check(self, fresh: bool = False) -> Check:
        """Calibrate, put neurons in order, and judge what is predicted; `fresh`: at the beginning of a stage.

        The penalty grows by STRONGER while a bound is not kept, and shrinks by WEAKER while there is room.
        """
        self.description, orders, self._prices = self.calibrate()
        self.adamw.rearrange(lambda named: self.subject.arranged(named, orders))
        if fresh:
            self.adamw.forget()
        if self.stage(self.at.step)[0]:
            self._student = self._make(self.description)
        found = self._note(self.description)
        if not fresh and self.settings.bounded:
            over = self._over(found)
            self.strength *= STRONGER if over > 1 else WEAKER if over < WELL_BELOW else 1.0
        return found

    def _note(self, description: Description) -> Check:
        mb = dealt(description, self.seq) / MB
        self.checks.append(Check(self.at.step, mb, widest_seen(description), self.strength))
        return self.checks[-1]

    def _over(self, found: Check) -> float:
        """What is predicted over what is wanted, the larger of both."""
        budget, most = self.settings.budget_mb, self.settings.max_range
        return max(found.mb / budget if budget else 0.0, found.widest / most if most else 0.0)

    # What `Run` asks for ----------------------------------------------------------------------------

    def validate(self, watch: Watch | None = None) -> float:
        """The student's figure, computed as its stage does."""
        model = self._student or (lambda tensors, batch: self.subject.in_floats(tensors, batch, silent))
        return self.subject.measure(model, self.adamw.tensors, watch)

    def better(self, new: float, old: float) -> bool:
        """Always: later weights are nearer to what was asked for, whatever a validation of them shows."""
        return True

    def state(self) -> dict[str, Tensor]:
        numbers = [self.strength, float(self._checked), self._loss]
        found = self.adamw.state() | {"numbers": torch.tensor(numbers, dtype=torch.float64)}
        if self.description:
            found["description"] = torch.tensor(list(self.description.text().encode()), dtype=torch.uint8)
        if self._prices:
            found |= {f"prices/{name}": value for name, value in self._prices.tensors().items()}
        return found

    def restore(self, state: dict[str, Tensor], at: Position) -> None:
        numbers = state["numbers"].tolist()
        self.strength, self._checked, self._loss = numbers[0], int(numbers[1]), numbers[2]
        taken = self.stage(max(at.step - 1, 0))[1] + 1 if at.step else 0  # updates since moments were forgotten
        self.adamw.restore(state, taken, partial=True)
        self.at = at
        if "description" in state:
            self.description = parse(bytes(state["description"].tolist()).decode())
            self._note(self.description)
            if self.stage(max(at.step - 1, 0))[0]:
                self._student = self._make(self.description)
        if "prices/total" in state:
            self._prices = Prices.of({k.removeprefix("prices/"): v for k, v in state.items()}).to(self.device)

    def write(self, directory: Path) -> None:
        """The student as a checkpoint, with the ranges that its present weights have on the texts for calibration."""
        description, orders, _ = self.calibrate()
        self._note(description)
        tensors = {name: t.detach().cpu() for name, t in self.adamw.tensors.items()}
        tensors = self.subject.arranged(tensors, [order.cpu() for order in orders])
        make_directory(directory)
        save_calibrated(directory, description, tensors)
        self.subject.save(directory, tensors)


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Products in TF32 while this runs; a preset's integers need all of fp32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = wanted or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

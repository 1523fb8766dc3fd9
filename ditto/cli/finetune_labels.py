"""`ditto finetune` for labelled texts: classification, regression, similarity of pairs."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ditto.cli.common import emit, note, out
from ditto.cli.training import Options, Reports, train
from ditto.errors import UsageError

if TYPE_CHECKING:
    from ditto.train.batches import Labelled
    from ditto.train.data import Example
    from ditto.train.data import Task as LabelTask
    from ditto.train.labelled import LabelTrainer
    from ditto.train.run import Run

BATCH, LR, EPOCHS, CONTEXT, DROPOUT = 32, 5e-5, 3.0, 256, 0.1


class Metric(StrEnum):
    accuracy = "accuracy"
    mcc = "mcc"


class Pooling(StrEnum):
    cls = "cls"
    mean = "mean"


class Schedule(StrEnum):
    linear = "linear"
    cosine = "cosine"


def finetune_labels(
    options: Options, name: str, given: dict[str, Path], data: Path | None, from_dir: Path | None, labels: str | None,
    metric: Metric | None, pooling: Pooling | None, schedule: Schedule | None, dropout: float | None,
) -> None:  # fmt: skip
    """`given`: files of one's own by what they are for; else the task called `name` lies in `data`."""
    if from_dir is None:
        raise UsageError(f"--task {name} needs --from CHECKPOINT, a pretrained encoder")
    from ditto.train.batches import Labelled, LengthOrder
    from ditto.train.labelled import LabelTrainer, Settings, start
    from ditto.train.objective import Objective
    from ditto.train.run import Run

    task, examples = _examples(name, given, data, labels, metric)
    if pooling is not None and task.labels:
        raise UsageError(f"--pooling is not for --task {name}")
    if pooling is Pooling.mean and not task.pairs:
        raise UsageError("--pooling mean compares two texts: a column text2 is needed")
    objective = Objective(task, "mean" if pooling is Pooling.mean else "cls")
    score = sum(label for _, label in examples["train"]) / len(examples["train"])
    checkpoint = start(from_dir, objective, options.seed, score)
    context = min(CONTEXT, checkpoint.dimensions.positions) if options.context is None else options.context
    tokenizer = checkpoint.tokenizer()
    rows = {split: Labelled(tokenizer, some, objective, context) for split, some in examples.items()}
    for split, some in rows.items() if not options.json else ():
        longest = f"up to {max(some.lengths)} tokens"
        note(f"{split}: {len(some.lengths):,} {'pairs' if task.pairs else 'texts'}, {longest}")
    batch, lr = options.batch or BATCH, LR if options.lr is None else options.lr
    steps = options.steps
    if steps is None:
        epoch = LengthOrder(rows["train"].lengths, batch, options.seed).batches
        steps = max(1, math.ceil(round((options.epochs or EPOCHS) * epoch, 6)))
    settings = Settings(
        steps, batch, context, lr, options.seed, options.validate_every(steps),
        DROPOUT if dropout is None else dropout, "linear" if schedule is None else schedule.value,
    )  # fmt: skip
    run = Run(LabelTrainer(checkpoint, objective, rows["train"], rows["valid"], settings, options.device), options.out)
    best = train(run, Labels(), options.deadline, quiet=options.json)
    document = _document(run, options.out, best, rows.get("test"))
    if options.json:
        emit(document)
    else:
        _print(document)


def _examples(
    name: str, given: dict[str, Path], data: Path | None, labels: str | None, metric: Metric | None
) -> "tuple[LabelTask, dict[str, list[Example]]]":
    from ditto.train.data import TASKS, examples_from, examples_of, task_of

    if not given:
        if data is None:
            raise UsageError(f"--task {name} needs --data DIR, where {name}/ lies")
        return TASKS[name], {"train": examples_of(name, "train", data), "valid": examples_of(name, "dev", data)}
    if name == "regress" and (labels is not None or metric is not None):
        raise UsageError("--labels and --metric are for --task classify")
    examples = {split: examples_from(path) for split, path in given.items()}
    for split, some in examples.items():
        if not some:
            raise UsageError(f"{given[split]}: no line below the header")
    every = [example for some in examples.values() for example in some]
    named = [label.strip() for label in labels.split(",")] if labels is not None else []
    kind = cast(Literal["classify", "regress"], name)
    return task_of(kind, every, named, "accuracy" if metric is None else metric.value), examples


class Labels(Reports["LabelTrainer"]):
    def step(self, run: "Run[LabelTrainer]") -> str:
        return f"{super().step(run)}, {_speed(run):,.1f} examples/s"

    def validation(self, run: "Run[LabelTrainer]", found: float) -> str:
        return f"validation {run.trainer.objective.task.metric} {found:.4f}"


def _speed(run: "Run[LabelTrainer]") -> float:
    """Examples trained on a second, by this process."""
    steps = run.trainer.at.step - run.began
    return steps * run.trainer.settings.batch / run.seconds if run.seconds else 0.0


def _document(run: "Run[LabelTrainer]", out_dir: Path, best: float | None, test: "Labelled | None") -> dict[str, Any]:
    trainer = run.trainer
    document: dict[str, Any] = {
        "out": str(out_dir),
        "architecture": trainer.checkpoint.class_name,
        "parameters": sum(t.numel() for t in trainer.tensors.values()),
        "step": trainer.at.step,
        "steps": trainer.steps,
        "finished": run.finished,
        "examples_per_second": _speed(run),
        "train_loss": trainer.at.loss,
        "metric": trainer.objective.task.metric,
        "valid": best,
    }
    if test is not None:
        from ditto.models import load_checkpoint

        trainer.load(load_checkpoint(out_dir).tensors)
        document["test"] = trainer.measure(test)
    return document


def _print(document: dict[str, Any]) -> None:
    state = "finished" if document["finished"] else "stopped; the same command goes on"
    out.print(f"{document['out']}: {document['architecture']}, {document['parameters']:,} parameters, "
              f"step {document['step']:,} of {document['steps']:,}, {state}")  # fmt: skip
    for split in ("valid", "test"):
        if document.get(split) is not None:
            out.print(f"{split} {document['metric']}: {document[split]:.4f}")

"""`ditto distill`: a copy of a teacher learns to answer alike under a preset's arithmetic."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.common import PRESET_HELP, Json, emit, note, out
from ditto.cli.training import Device, Reports, computing_on
from ditto.cli.training import train as train_run
from ditto.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models import Checkpoint
    from ditto.models.tokenizer import Text
    from ditto.train.data import Example
    from ditto.train.distill import Check, Distiller
    from ditto.train.run import Run

# Epochs where none are given. As published (Ditto's code): 50 of the first for CoLA and RTE, 5 of the second; a preset
# that keeps the functions has only roundings to learn.
RANGES, LAYERS, LOGITS, KEPT = 3.0, {"cola": 50.0, "rte": 50.0}, 5.0, 1.0
LM = "lm"
FEWEST = 5.0  # of the first stage, of other tasks


Epochs = Annotated[float | None, typer.Option(min=0, help="Passes over the texts.")]


def distill(
    teacher: Annotated[Path, typer.Option(help="A fine-tuned checkpoint, as `ditto finetune` makes them.")],
    task: Annotated[
        str, typer.Option(help="sst2, cola, rte, stsb, or a file: CSV or .tsv with text, text2, label; lm: of a GPT-2.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="The student's directory; the same command goes on there.")],
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "ditto",
    data: Annotated[
        Path | None, typer.Option(envvar="DITTO_DATA", help="Where the tasks' directories are: sst2/train.tsv.gz, …")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="lm: the text to train on; files may end in .gz.")] = None,
    valid: Annotated[
        Path | None, typer.Option(help="lm, or with a file as --task: another one to validate on.")
    ] = None,
    budget_mb: Annotated[
        float | None, typer.Option(min=0.001, help="Move ranges until an inference takes so many MB from the dealer.")
    ] = None,
    max_range: Annotated[
        float | None, typer.Option(min=0.1, help="Move |x| before activations below this, as calibration sees it.")
    ] = None,
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens of the inference that --budget-mb is of.")] = 128,
    ranges_epochs: Annotated[
        float | None, typer.Option(min=0, help="Of the stage that moves ranges, in floats (default: 3).")
    ] = None,
    stage1_epochs: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of hidden states and attention of all layers (default: 1; where the preset has other functions 5, "
            "of cola and rte 50).",
        ),
    ] = None,
    stage2_epochs: Annotated[
        float | None, typer.Option(min=0, help="Of the answers (default: 1; with other functions 5).")
    ] = None,
    ranges_lr: Annotated[float, typer.Option(min=0, help="Learning rate of the stage that moves ranges.")] = 1e-4,
    stage1_lr: Annotated[float, typer.Option(min=0, help="Of the first stage.")] = 5e-5,
    stage2_lr: Annotated[float, typer.Option(min=0, help="Of the second stage, the highest.")] = 1e-5,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of the penalty on ranges: at the beginning, or without --budget-mb and --max-range all along "
            "(default: 1).",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 32,
    length: Annotated[int, typer.Option(min=4, help="Tokens of a text at most: what is longer loses its end.")] = 128,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train on so many texts, the first ones (default: all).")
    ] = None,
    calibrated: Annotated[int, typer.Option(min=1, help="Texts of the training set that ranges are taken from.")] = 512,
    check_every: Annotated[
        int, typer.Option(min=1, help="Steps from one calibration, and prediction of the cost, to the next.")
    ] = 200,
    validations: Annotated[int, typer.Option(min=1, help="How often to validate, the last time at the end.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the order.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop training after this time, to go on later; then validate.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (default: one a core).")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    json: Json = False,
) -> None:
    """Distil a checkpoint for a preset: trained with its arithmetic in the loop, in ranges that cost little.

    The result imports without a calibration text. Interrupted, the same command goes on.
    """
    began = time.monotonic()
    from ditto.models import load_checkpoint
    from ditto.presets import preset_of
    from ditto.train.distill import Distiller, Settings
    from ditto.train.run import Run

    chosen = preset_of(preset)
    computing_on(device, threads)
    checkpoint = load_checkpoint(teacher)
    moved = any(option is not None for option in (budget_mb, max_range, strength))
    if ranges_epochs and not moved:
        raise UsageError("--ranges-epochs is of the stage that --budget-mb, --max-range or --strength ask for")
    texts: list[Text] = []
    if task == LM:
        given = _windows(checkpoint, teacher, train, valid, length)
        count = min(limit or sys.maxsize, given[0].numel() // length)
        given = given[0][: count * length + 1], given[1]
    else:
        if train is not None:
            raise UsageError(f"--train is for --task {LM}")
        examples, held_out = _examples(task, data, valid)
        texts, held, measure = (
            _texts(examples[:limit], checkpoint),
            _texts(held_out, checkpoint),
            _metric(task, checkpoint, held_out),
        )
        count = len(texts)
    usual = (LAYERS.get(task, FEWEST), LOGITS) if chosen.distilled else (KEPT, KEPT)
    epochs = (
        (RANGES if ranges_epochs is None else ranges_epochs) if moved else 0.0,
        stage1_epochs if stage1_epochs is not None else usual[0] if task != LM else 0.0,
        usual[1] if stage2_epochs is None else stage2_epochs,
    )
    steps = tuple(math.ceil(passes * -(-count // batch)) for passes in epochs)
    settings = Settings(
        preset=chosen.name, steps=(steps[0], steps[1], steps[2]), rates=(ranges_lr, stage1_lr, stage2_lr), batch=batch,
        longest=length, seed=seed, budget_mb=budget_mb, max_range=max_range, seq=seq, strength=strength,
        check_every=check_every, validate_every=max(1, -(-sum(steps) // validations)), calibrated=calibrated,
    )  # fmt: skip
    if task == LM:
        distiller = Distiller.on_windows(checkpoint, *given, settings, device.value)
    else:
        distiller = Distiller.on_texts(checkpoint, texts, held, settings, device.value, measure)
    if not json:
        note(f"{teacher}: {checkpoint.class_name}; {count:,} texts, {' + '.join(map(str, steps))} steps")
    run = Run(distiller, out_dir)
    best = train_run(run, _Reports(), began + 60 * minutes if minutes is not None else math.inf, quiet=json)
    document = _document(run, out_dir, best)
    if json:
        emit(document)
    else:
        _print(document)


class _Reports(Reports["Distiller"]):
    def step(self, run: "Run[Distiller]") -> str:
        trainer = run.trainer
        text = f"{trainer.stage_name}: loss {trainer.at.loss or 0.0:.4f}"
        return f"{text}; {_cost(trainer.checks[-1])}" if trainer.checks else text


def _cost(check: "Check") -> str:
    return f"{check.mb:.1f} MB from the dealer, |x| to {check.widest:.1f}"


def _examples(task: str, data: Path | None, valid: Path | None) -> "tuple[list[Example], list[Example]]":
    """To train on, and to validate on: a file's last tenth where no other file is named."""
    from ditto.train.data import TASKS, examples_from, examples_of

    if task in TASKS:
        if data is None:
            raise UsageError(f"--data DIR is missing: the directory that holds {task}/")
        if valid is not None:
            raise UsageError(f"--valid is for a file as --task: {task} has its own")
        return examples_of(task, "train", data), examples_of(task, "dev", data)
    if not Path(task).is_file():
        raise UsageError(f"--task {task}: no such file, and no task known by name ({', '.join(TASKS)})")
    examples = examples_from(Path(task))
    if valid is not None:
        return examples, examples_from(valid)
    held_out = max(1, len(examples) // 10)
    if len(examples) < 2:
        raise UsageError(f"{task}: one example is not enough to train on and to validate on")
    return examples[:-held_out], examples[-held_out:]


def _windows(
    checkpoint: "Checkpoint", directory: Path, train: Path | None, valid: Path | None, length: int
) -> "tuple[Tensor, Tensor]":
    """Tokens of both texts. Raises UsageError for a checkpoint that is no GPT-2, and for too few of them."""
    from ditto.models.registry import GENERATORS
    from ditto.train.text import BytePairs, read_text

    if checkpoint.class_name not in GENERATORS:
        raise UsageError(f"{checkpoint.class_name}: --task {LM} is of {', '.join(GENERATORS)}")
    if train is None or valid is None:
        raise UsageError(f"--task {LM} needs --train FILE and --valid FILE")
    words = BytePairs(directory)
    texts = [words.encode(read_text(path)) for path in (train, valid)]
    for path, ids in zip((train, valid), texts, strict=True):
        if ids.numel() <= length:
            raise UsageError(f"{path}: {ids.numel()} tokens; windows of {length} need at least {length + 1}")
    return texts[0], texts[1]


def _texts(examples: "list[Example]", checkpoint: "Checkpoint") -> "list[Text]":
    """As the model is asked: a pair is one sequence, or two texts where hidden states are compared, all first ones
    before all second ones."""
    from ditto.models import Answer

    if checkpoint.architecture.answer is not Answer.vector:
        return [example.text for example in examples]
    parts = [example.text if isinstance(example.text, tuple) else (example.text,) for example in examples]
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def _metric(task: str, checkpoint: "Checkpoint", examples: "list[Example]") -> "Callable[[Tensor], float] | None":
    """Of outputs in the order of `_texts`; None where hidden states are all that there is."""
    import torch

    from ditto.models import Answer
    from ditto.train.data import TASKS
    from ditto.train.metrics import metric

    labels = torch.tensor([example.label for example in examples])
    pairs = all(isinstance(example.text, tuple) for example in examples)
    match checkpoint.architecture.answer:
        case Answer.labels:
            usual = "accuracy" if len(checkpoint.dimensions.labels) > 1 else "spearman"
            name = TASKS[task].metric if task in TASKS else usual
            return lambda outputs: metric(name, outputs, labels)
        case Answer.vector if pairs:
            half = len(examples)
            return lambda outputs: metric("spearman", torch.cosine_similarity(outputs[:half], outputs[half:]), labels)
        case Answer.vector:
            return None
        case answer:
            raise UsageError(
                f"{checkpoint.class_name} gives {answer}: only classes, scores and embeddings are distilled"
            )


def _document(run: "Run[Distiller]", out_dir: Path, best: float | None) -> dict[str, Any]:
    trainer = run.trainer
    settings, last = trainer.settings, trainer.checks[-1] if trainer.checks else None
    return {
        "out": str(out_dir),
        "preset": settings.preset,
        "step": trainer.at.step,
        "steps": trainer.steps,
        "finished": run.finished,
        "loss": trainer.at.loss,
        "valid": best,
        "seq": trainer.seq,
        "dealer_mb": last and last.mb,
        "widest": last and last.widest,
        "budget_mb": settings.budget_mb,
        "max_range": settings.max_range,
        "kept": trainer.kept(last) if last and settings.bounded else None,
        "steps_per_second": (trainer.at.step - run.began) / run.seconds if run.seconds else None,
    }


def _print(document: dict[str, Any]) -> None:
    state = "finished" if document["finished"] else "stopped; the same command goes on"
    out.print(
        f"{document['out']}: preset {document['preset']}, step {document['step']:,} of {document['steps']:,}, {state}"
    )
    if document["valid"] is not None:
        out.print(f"validation: {document['valid']:.4f}")
    if document["dealer_mb"] is not None:
        out.print(f"an inference of {document['seq']} tokens takes {document['dealer_mb']:.1f} MB from the dealer")
    if document["kept"] is False:
        note("the ranges are wider than asked for: more --ranges-epochs, or a larger --strength")
    out.print(f"next: ditto model import {document['out']} --name NAME")

"""`ditto finetune`: train a model on this machine, in floats, before it is imported."""

import math
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ditto.cli.common import Json
from ditto.cli.finetune_labels import Metric, Pooling, Schedule, finetune_labels
from ditto.cli.finetune_language import Activation, finetune_language
from ditto.cli.training import Device, Options, computing_on
from ditto.errors import UsageError


class Task(StrEnum):
    lm = "lm"
    classify = "classify"
    regress = "regress"
    sst2 = "sst2"
    cola = "cola"
    rte = "rte"
    stsb = "stsb"


OWN = (Task.lm, Task.classify, Task.regress)  # with files of one's own


def finetune(
    task: Annotated[
        Task,
        typer.Option(help="lm: GPT-2 on plain text. classify, regress: an encoder on labelled texts. Or a data set."),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint's directory; the same command goes on there.")],
    train: Annotated[
        Path | None, typer.Option(help="What to train on: text, or a table with text, text2 and label; also .gz.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="The same, to decide which weights are kept.")] = None,
    data: Annotated[Path | None, typer.Option(help="For a data set by name: the directory it lies in.")] = None,
    from_dir: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint to start from: GPT-2, or an encoder, with tokenizer.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="lm from random weights: the directory of vocab.json and merges.txt.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of a new model.", show_default="4")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Hidden size of a new model.", show_default="192")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads of a new model.", show_default="6")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in a chunk, a new model's positions; or of a text, which is cut.",
            show_default="128, or all; 256",
        ),
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(
            help="lm; quad: what ditto-icml24 computes in the place of GELU.", show_default="the checkpoint's"
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="classify: the classes' names by number: no,yes.")] = None,
    metric: Annotated[
        Metric | None, typer.Option(help="classify: which weights are best.", show_default="accuracy")
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="regress, stsb; cls: a head on the first token; mean: the cosine of two mean-pooled texts.",
            show_default="cls",
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=1e-6, help="Passes over the data.", show_default="1; 3")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop training after this time, to go on later; then validate.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Chunks or examples in a step.", show_default="8; 32")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="The highest learning rate.", show_default="1e-3; 5e-5")
    ] = None,
    schedule: Annotated[
        Schedule | None, typer.Option(help="How the learning rate falls, but for lm.", show_default="linear")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="In training, but for lm.", show_default="0.1")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of new weights, order and dropout.")] = 0,
    validations: Annotated[int, typer.Option(min=1, help="How often to validate, the last time at the end.")] = 4,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="lm: the output layer in bfloat16 (1.7 times the speed with AVX512-BF16).")
    ] = False,
    test: Annotated[Path | None, typer.Option(help="What to measure the result on, at the end.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="one a core")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    json: Json = False,
) -> None:
    """Train a model and write a Hugging Face checkpoint. Interrupted, the same command goes on.

    Where an option has two defaults, the second one is for labelled texts.
    """
    began = time.monotonic()
    if epochs is not None and steps is not None:
        raise UsageError("give one of --epochs and --steps")
    if task in OWN:
        given = _files(task, train, valid, test)
        _refuse(task, data=data)
    else:
        given = {}
        _refuse(task, train=train, valid=valid, test=test, labels=labels, metric=metric)
    if task is Task.lm:
        _refuse(task, labels=labels, metric=metric, pooling=pooling, schedule=schedule, dropout=dropout)
    else:
        new = {"tokenizer": tokenizer, "layers": layers, "hidden": hidden, "heads": heads}
        _refuse(task, **new, activation=activation, bf16=bf16 or None)
    deadline = began + 60 * minutes if minutes is not None else math.inf
    options = Options(out_dir, steps, epochs, deadline, batch, context, lr, seed, validations, device.value, json)
    computing_on(device, threads)
    if task is Task.lm:
        finetune_language(options, given, from_dir, tokenizer, (layers, hidden, heads), activation, bf16)
    else:
        finetune_labels(options, task.value, given, data, from_dir, labels, metric, pooling, schedule, dropout)


def _files(task: Task, train: Path | None, valid: Path | None, test: Path | None) -> dict[str, Path]:
    if train is None or valid is None:
        raise UsageError(f"--task {task.value} needs --train FILE and --valid FILE")
    return {"train": train, "valid": valid} | ({"test": test} if test else {})


def _refuse(task: Task, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name} is not for --task {task.value}")

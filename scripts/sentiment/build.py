"""Build the sentiment classifier that is shipped in ditto/data/sentiment, from all-MiniLM-L6-v2 and SST-2.

    python -m scripts.sentiment.build --data DATA --work DIR [--device cuda] [--encoder DIR] [--teacher DIR] …

DATA holds sst2/train.tsv.gz and sst2/dev.tsv. DIR takes what is made on the way; the same command goes on after a
stop, and skips what is done:

1. DIR/encoder: the encoder with a vocabulary cut to --pieces and --positions.
2. DIR/teacher: all its layers, fine-tuned on the labels as `ditto finetune` does (or --teacher, which has to have the
   vocabulary of DIR/encoder).
3. DIR/student: --layers of the teacher, fine-tuned on its answers and the labels, weights rounded to int8 in the last
   steps.
4. DIR/ranged: the student distilled into cheaper ranges as `ditto distill` does, with --budget-mb.
5. DIR/sentiment: int8, neurons in the order of their calibrated ranges, ditto's description beside it.
6. DIR/card.json: settings, sizes, how the vocabulary fits, accuracy on dev after each step.

Weights are always the last ones: dev is only looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ditto import files
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.export import write_json
from ditto.models.tokenizer_files import read_backend
from ditto.train.batches import Labelled, LengthOrder
from ditto.train.data import TASKS, examples_of
from ditto.train.labelled import LabelTrainer, Settings, start
from ditto.train.objective import Objective
from ditto.train.run import Run, Trainer
from scripts.sentiment import checkpoints, vocabulary
from scripts.sentiment.student import How, Imitator

EVERY = 50  # steps between two lines
OBJECTIVE = Objective(TASKS["sst2"])


def build(
    data: Annotated[Path, typer.Option(help="The directory that holds sst2/.")],
    work: Annotated[Path, typer.Option(help="Where everything goes.")],
    encoder: Annotated[Path | None, typer.Option(help="all-MiniLM-L6-v2; default: the installed package's.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A teacher with the cut vocabulary, in the place of 2.")] = None,
    device: str = "cpu",
    pieces: int = 11_000,
    positions: int = 128,
    layers: Annotated[str, typer.Option(help="The teacher's layers that the student begins with.")] = "0,1,2,3",
    batch: int = 32,
    teacher_epochs: Annotated[float, typer.Option(help="0: no teacher, from the labels alone.")] = 3.0,
    teacher_lr: float = 5e-5,
    epochs: float = 6.0,
    lr: float = 1e-4,
    soft: Annotated[float, typer.Option(help="Weight of the teacher's answers.")] = 0.9,
    temperature: float = 2.0,
    masked: Annotated[float, typer.Option(help="Part of the tokens that are read as [MASK].")] = 0.1,
    dropout: float = 0.1,
    int8: Annotated[float, typer.Option(help="Part of the steps with rounded weights.")] = 0.1,
    budget_mb: Annotated[
        float | None, typer.Option(help="MB from the dealer for a text of 32 tokens; none: ranges as they come.")
    ] = None,
    ranged_steps: int = 1_000,
    bf16: Annotated[bool, typer.Option("--bf16", help="3 in bfloat16: a GPU, or a CPU with AMX.")] = False,
    seed: int = 0,
) -> None:
    """The whole recipe."""
    settings = dict(locals())
    began = time.monotonic()
    train, dev = (examples_of("sst2", split, data) for split in ("train", "dev"))
    sentences = [str(e.text) for e in train]
    cut = work / "encoder"
    if not (cut / "fit.json").exists():
        say(f"1. {pieces:,} pieces, {positions} positions")
        source = encoder or _installed()
        checkpoints.prune(source, cut, sentences, pieces, positions)
        both = {"full": vocabulary.read(source / "tokenizer.json"), "cut": vocabulary.read(cut / "tokenizer.json")}
        write_json(cut / "fit.json", {name: vocabulary.fit(d, [str(e.text) for e in dev]) for name, d in both.items()})
    first = start(cut, OBJECTIVE, seed)
    texts, judged = (Labelled(first.tokenizer(), some, OBJECTIVE, positions) for some in (train, dev))
    epoch = LengthOrder(texts.lengths, batch, seed).batches
    seen: dict[str, float] = {}

    def trained(name: str, steps: float, make: Callable[[Settings], Trainer], rate: float) -> Checkpoint:
        count = max(1, round(steps))
        run = Run(make(Settings(count, batch, positions, rate, seed, count, dropout)), work / name)
        say(f"{name}: {count:,} steps")
        run.go(lambda: False, lambda loss: _progress(run))
        return measured(name, work / name)

    def measured(name: str, where: Path) -> Checkpoint:
        found = load_checkpoint(where)
        trainer = LabelTrainer(found, OBJECTIVE, texts, judged, Settings(1, batch, positions, 0.0, 0, 1), device)
        seen[name] = round(trainer.measure(judged), 4)
        say(f"{name}: {seen[name]:.4f} on dev, {time.monotonic() - began:,.0f} s")
        return found

    guide = load_checkpoint(teacher) if teacher else None
    if guide is None and teacher_epochs:
        guide = trained(
            "teacher", teacher_epochs * epoch,
            lambda s: LabelTrainer(first, OBJECTIVE, texts, judged, s, device), teacher_lr,
        )  # fmt: skip
    picked = checkpoints.with_layers(guide or first, [int(i) for i in layers.split(",")])
    how = How(soft, temperature, masked, read_backend(cut).token_to_id("[MASK]"), int8, bf16)
    trained(
        "student", epochs * epoch,
        lambda s: Imitator(picked, guide, OBJECTIVE, texts, judged, s, how, device), lr,
    )  # fmt: skip
    last = work / "student"
    if budget_mb is not None:
        last = work / "ranged"
        _ranged(work / "student", last, sentences, budget_mb, ranged_steps, device)
        measured("ranged", last)
    shipped = work / checkpoints.NAME
    errors = checkpoints.finish(last, shipped, sentences, work / "arranged")
    small = measured("int8", shipped)
    card = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "accuracy on dev, in floats": seen,
        "parameters": sum(t.numel() for t in small.tensors.values()),
        "bytes": {path.name: path.stat().st_size for path in sorted(shipped.iterdir())},
        "int8": errors,
        "vocabulary on dev": files.read_json(cut / "fit.json"),
        "seconds": round(time.monotonic() - began),
    }
    write_json(work / "card.json", card)
    say(json.dumps(card, indent=2))


def _ranged(student: Path, target: Path, texts: list[str], budget_mb: float, steps: int, device: str) -> None:
    """Stage "ranges" of `ditto distill`: in floats, towards what costs less."""
    from ditto.train.distill import Distiller
    from ditto.train.distill import Settings as DistillSettings

    how = DistillSettings(steps=(steps, 0, 0), budget_mb=budget_mb, seq=32, validate_every=steps)
    distiller = Distiller.on_texts(load_checkpoint(student), texts, texts[:100], how, device)
    run = Run(distiller, target)
    run.go(lambda: False, lambda loss: _progress(run))
    for check in distiller.checks[-1:]:
        say(f"ranged: {check.mb:.1f} MB predicted for 32 tokens, |x| before GELU up to {check.widest:.1f}")


def _progress(run: Run[Any]) -> None:
    if run.trainer.at.step % EVERY == 0:
        say(f"  step {run.trainer.at.step:,} of {run.trainer.steps:,}: loss {run.trainer.at.loss:.4f}")


def _installed() -> Path:
    from ditto.cli.demo import installed_checkpoint  # the command line is not needed where DIR/encoder is there

    return installed_checkpoint()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    typer.run(build)

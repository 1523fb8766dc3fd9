"""`ditto finetune`: train a model on this machine, in floats, before it is imported."""

import math
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.common import Json, emit, note, out
from ditto.cli.training import Reports
from ditto.cli.training import train as train_run
from ditto.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models import Dimensions
    from ditto.train.language import LanguageTrainer
    from ditto.train.run import Run
    from ditto.train.text import BytePairs


class Task(StrEnum):
    lm = "lm"


class Activation(StrEnum):
    gelu_new = "gelu_new"
    quad = "quad"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def finetune(
    task: Annotated[Task, typer.Option(help="lm: GPT-2 on plain text.")],
    train: Annotated[Path, typer.Option(help="The text to train on; files may end in .gz.")],
    valid: Annotated[Path, typer.Option(help="The text whose loss decides which weights are kept.")],
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint's directory; the same command goes on there.")],
    from_dir: Annotated[
        Path | None, typer.Option("--from", help="A GPT-2 checkpoint to start from, with vocab.json and merges.txt.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Start from random weights: the directory of vocab.json and merges.txt.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of a new model.  [default: 4]")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Hidden size of a new model.  [default: 192]")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads of a new model.  [default: 6]")] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a chunk; a new model's positions.  [default: 128, or all]")
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(help="quad: what ditto-icml24 computes in the place of GELU.  [default: the checkpoint's]"),
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=1e-6, help="Passes over the text.  [default: 1]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop training after this time, to go on later; then validate.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Chunks in a step.")] = 8,
    lr: Annotated[float, typer.Option(min=0, help="The highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the weights and of the order.")] = 0,
    validations: Annotated[int, typer.Option(min=1, help="How often to validate, the last time at the end.")] = 4,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="The output layer in bfloat16 (1.7 times the speed with AVX512-BF16).")
    ] = False,
    test: Annotated[Path | None, typer.Option(help="A text to measure the result on, at the end.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.  [default: one a core]")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    json: Json = False,
) -> None:
    """Train GPT-2 on plain text and write a Hugging Face checkpoint. Interrupted, the same command goes on."""
    began = time.monotonic()
    if (from_dir is None) == (tokenizer is None):
        raise UsageError("give one of --from CHECKPOINT and --tokenizer DIR (a new model)")
    if from_dir is not None and (layers, hidden, heads) != (None, None, None):
        raise UsageError("--layers, --hidden and --heads are for a new model: --from has its sizes")
    if epochs is not None and steps is not None:
        raise UsageError("give one of --epochs and --steps")
    import torch

    from ditto.ring.malloc import tune_memory
    from ditto.train import language as training
    from ditto.train.run import Run
    from ditto.train.text import BytePairs

    tune_memory()
    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here")
    if threads:
        torch.set_num_threads(threads)
    words = BytePairs(from_dir or tokenizer or Path())
    tensors, d = _start(words, from_dir, (layers or 4, hidden or 192, heads or 6, context or 128), seed)
    if activation is not None:
        d = d.model_copy(update={"activation": "quad" if activation is Activation.quad else "tanh gelu"})
    length = context or d.positions
    given = {"train": train, "valid": valid} | ({"test": test} if test else {})
    texts = {name: _tokens(words, path, length, f"--{name}", quiet=json) for name, path in given.items()}
    if steps is None:
        chunks = (texts["train"].numel() - 1) // length
        steps = max(1, -(-round((epochs or 1) * chunks) // batch))
    settings = training.Settings(steps, batch, length, lr, seed, max(1, -(-steps // validations)), bf16)
    trainer = training.LanguageTrainer(
        tensors, d, texts["train"], texts["valid"], settings, words.directory, device.value
    )
    run = Run(trainer, out_dir)
    del tensors
    best = train_run(run, Language(), began + 60 * minutes if minutes is not None else math.inf, quiet=json)
    document = _document(run, out_dir, best, texts.get("test"))
    if json:
        emit(document)
    else:
        _print(document)


def _start(
    words: "BytePairs", from_dir: Path | None, sizes: tuple[int, int, int, int], seed: int
) -> "tuple[dict[str, Tensor], Dimensions]":
    """Weights and sizes at the start."""
    from ditto.models import load_checkpoint
    from ditto.models.registry import GENERATORS
    from ditto.train.language import new_dimensions, new_weights

    if from_dir is None:
        layers, hidden, heads, context = sizes
        d = new_dimensions(words.size, layers, hidden, heads, context)
        return new_weights(d, seed), d
    checkpoint = load_checkpoint(from_dir)
    if checkpoint.class_name not in GENERATORS:
        raise UsageError(f"{from_dir}: {checkpoint.class_name}; --task lm trains {', '.join(GENERATORS)}")
    d = checkpoint.dimensions
    if words.size > d.vocabulary:
        raise UsageError(f"{from_dir}: {words.size} words in vocab.json, {d.vocabulary} embeddings")
    return checkpoint.tensors, d


def _tokens(words: "BytePairs", path: Path, context: int, option: str, *, quiet: bool) -> "Tensor":
    """A text's tokens. Raises UsageError if they are too few, before hours have gone into training."""
    from ditto.train.text import read_text

    ids = words.encode(read_text(path))
    if ids.numel() <= context:
        raise UsageError(f"{option}: {ids.numel()} tokens; a context of {context} needs at least {context + 1}")
    if not quiet:
        note(f"{path}: {ids.numel():,} tokens")
    return ids


class Language(Reports["LanguageTrainer"]):
    def step(self, run: "Run[LanguageTrainer]") -> str:
        return f"{super().step(run)}, {speed(run):,.0f} tokens/s"

    def validation(self, found: float) -> str:
        return f"validation perplexity {_exp(found):.2f}"


def speed(run: "Run[LanguageTrainer]") -> float:
    """Tokens trained on a second, by this process."""
    settings = run.trainer.settings
    tokens = (run.trainer.at.step - run.began) * settings.batch * settings.context
    return tokens / run.seconds if run.seconds else 0.0


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700))


def _document(run: "Run[LanguageTrainer]", out_dir: Path, best: float | None, test: "Tensor | None") -> dict[str, Any]:
    trainer = run.trainer
    settings, at = trainer.settings, trainer.at
    document: dict[str, Any] = {
        "out": str(out_dir),
        "parameters": sum(t.numel() for t in trainer.tensors.values()),
        "step": at.step,
        "steps": settings.steps,
        "finished": run.finished,
        "tokens": at.step * settings.batch * settings.context,
        "tokens_per_second": speed(run),
        "train_perplexity": None if at.loss is None else _exp(at.loss),
        "valid_perplexity": None if best is None else _exp(best),
    }
    if test is not None:
        from ditto.models import load_checkpoint

        trainer.load(load_checkpoint(out_dir).tensors)
        document["test_perplexity"] = _exp(trainer.loss_on(test))
    return document


def _print(document: dict[str, Any]) -> None:
    state = "finished" if document["finished"] else "stopped; the same command goes on"
    out.print(f"{document['out']}: {document['parameters']:,} parameters, step {document['step']:,} of "
              f"{document['steps']:,}, {state}")  # fmt: skip
    for text in ("train", "valid", "test"):
        if document.get(f"{text}_perplexity") is not None:
            out.print(f"{text} perplexity a token: {document[f'{text}_perplexity']:.2f}")

"""`ditto finetune --task lm`: GPT-2 on plain text."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.cli.common import emit, note, out
from ditto.cli.training import Options, Reports, train
from ditto.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models import Dimensions
    from ditto.train.language import LanguageTrainer
    from ditto.train.run import Run
    from ditto.train.text import BytePairs

LAYERS, HIDDEN, HEADS, CONTEXT = 4, 192, 6, 128  # of a new model
BATCH, LR, EPOCHS = 8, 1e-3, 1.0


class Activation(StrEnum):
    gelu_new = "gelu_new"
    quad = "quad"


def finetune_language(
    options: Options, texts: dict[str, Path], from_dir: Path | None, tokenizer: Path | None,
    sizes: tuple[int | None, int | None, int | None], activation: Activation | None, bf16: bool,
) -> None:  # fmt: skip
    """`texts`: train, valid and perhaps test. `sizes`: layers, hidden size and heads of a new model."""
    if (from_dir is None) == (tokenizer is None):
        raise UsageError("give one of --from CHECKPOINT and --tokenizer DIR (a new model)")
    if from_dir is not None and sizes != (None, None, None):
        raise UsageError("--layers, --hidden and --heads are for a new model: --from has its sizes")
    from ditto.train.language import LanguageTrainer, Settings
    from ditto.train.run import Run
    from ditto.train.text import BytePairs

    words = BytePairs(from_dir or tokenizer or Path())
    layers, hidden, heads = sizes
    made = (layers or LAYERS, hidden or HIDDEN, heads or HEADS, options.context or CONTEXT)
    tensors, d = _start(words, from_dir, made, options.seed)
    if activation is not None:
        d = d.model_copy(update={"activation": "quad" if activation is Activation.quad else "tanh gelu"})
    length, batch = options.context or d.positions, options.batch or BATCH
    ids = {name: _tokens(words, path, length, f"--{name}", quiet=options.json) for name, path in texts.items()}
    steps = options.steps
    if steps is None:
        chunks = (ids["train"].numel() - 1) // length
        steps = max(1, -(-round((options.epochs or EPOCHS) * chunks) // batch))
    lr = LR if options.lr is None else options.lr
    settings = Settings(steps, batch, length, lr, options.seed, options.validate_every(steps), bf16)
    trainer = LanguageTrainer(tensors, d, ids["train"], ids["valid"], settings, words.directory, options.device)
    run = Run(trainer, options.out)
    del tensors
    best = train(run, Language(), options.deadline, quiet=options.json)
    document = _document(run, options.out, best, ids.get("test"))
    if options.json:
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

    def validation(self, run: "Run[LanguageTrainer]", found: float) -> str:
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

"""Training GPT-2 on text: the loss, the order, stopping and going on, the checkpoint, the command line."""

from __future__ import annotations

import gzip
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from typer.testing import CliRunner

from ditto.cli import app
from ditto.errors import BadCheckpoint, EmptyText, UsageError
from ditto.models import Dimensions, load_checkpoint
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import forward, logits
from ditto.train import output_loss as pieces
from ditto.train import perplexity as measure
from ditto.train.language import LanguageTrainer, Settings, new_dimensions, new_weights
from ditto.train.output_loss import output_loss
from ditto.train.perplexity import cross_entropy, perplexity
from ditto.train.run import Run
from ditto.train.text import BytePairs, Order, read_text

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = " = The cat = \n \n the cat sat on the mat , and the dog ran to the hat . it 's <unk> @-@ red .\n" * 12


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with a few merges, as GPT-2's files are."""
    path = tmp_path_factory.mktemp("words")
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t"), ("Ġ", "c"), ("Ġc", "at")]
    vocabulary = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    return path


def ditto(*args: object, code: int = 0) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, ["finetune", "--task", "lm", *map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else {}, result.stderr


SIZES = ("--layers", 2, "--hidden", 16, "--heads", 2, "--context", 8, "--batch", 3)


# --- the loss and the measure


@pytest.mark.parametrize(("bf16", "close"), [(False, 1e-5), (True, 1e-2)])
def test_loss_in_pieces_has_the_gradients_of_the_whole(
    bf16: bool, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "ROWS", 16)
    torch.manual_seed(0)
    hidden, weight = torch.randn(37, 8, requires_grad=True), (0.5 * torch.randn(50, 8)).requires_grad_()
    targets = torch.randint(0, 50, (37,))
    whole = F.cross_entropy(hidden @ weight.t(), targets)
    loss = output_loss(hidden, weight, targets, bf16=bf16)
    assert abs(float(loss.detach() - whole.detach())) < close
    wanted, found = (torch.autograd.grad(3 * x, (hidden, weight)) for x in (whole, loss))
    for a, b in zip(wanted, found, strict=True):
        assert float((a - b).norm() / a.norm()) < close


def test_perplexity_counts_every_full_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROWS", 5)
    dimensions = new_dimensions(20, 1, 8, 2, 6)
    tensors = new_weights(dimensions, 1)
    ids = torch.randint(0, 20, (45,))  # 7 windows of 6; the last window predicts ids[42], and two are left

    def scores(rows: torch.Tensor) -> torch.Tensor:
        assert rows.shape[1] == 6 and len(rows) <= 4
        return logits(tensors, forward(tensors, dimensions, rows)).half()

    seen: list[tuple[int, int]] = []
    loss, count = cross_entropy(scores, ids, 6, watch=lambda done, windows: seen.append((done, windows)))
    assert count == 42 and seen == [(4, 7), (7, 7)]
    whole = F.cross_entropy(scores_of(tensors, dimensions, ids[:42].view(7, 6)), ids[1:43])
    assert loss == pytest.approx(float(whole), rel=1e-3)
    assert perplexity(lambda rows: torch.zeros(*rows.shape, 20), ids, 6) == pytest.approx(20)
    with pytest.raises(UsageError, match="at least 46"):
        perplexity(scores, ids, 45)


def scores_of(tensors: dict[str, torch.Tensor], dimensions: Dimensions, rows: torch.Tensor) -> torch.Tensor:
    return logits(tensors, forward(tensors, dimensions, rows)).flatten(0, 1)


# --- text


def test_tokens_are_those_of_transformers(words: Path) -> None:
    from transformers import GPT2Tokenizer

    sample = TEXT[:200] + "Ünïcode – 日本\n\n\n  the cat\tthe"
    ids = BytePairs(words).encode(sample)
    theirs = GPT2Tokenizer.from_pretrained(str(words))
    assert "".join(theirs.decode(ids)) == sample
    assert ids.tolist() == [i for line in sample.splitlines(keepends=True) for i in theirs.encode(line)]


def test_unusable_texts_and_tokenizers(tmp_path: Path, words: Path) -> None:
    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    with pytest.raises(UsageError, match="no such file"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(EmptyText):
        read_text(written("blank.txt", b" \n\n"))
    for path in (written("a.txt", b"\xff\xfe"), written("a.gz", b"text"), written("b.gz", gzip.compress(b"text")[:-6])):
        with pytest.raises(UsageError, match="not a text file"):
            read_text(path)
    with pytest.raises(BadCheckpoint, match=r"vocab\.json: no such file"):
        BytePairs(tmp_path)
    written("vocab.json", b"[]")
    (tmp_path / "merges.txt").write_bytes((words / "merges.txt").read_bytes())
    with pytest.raises(BadCheckpoint, match="byte-level BPE"):
        BytePairs(tmp_path)


def test_order_is_a_permutation_each_epoch_and_follows_from_the_position() -> None:
    ids = torch.arange(0, 45)
    order = Order(ids, 4, seed=7)
    assert order.chunks == 11
    inputs, targets = order.batch(0, 22)
    assert torch.equal(targets, inputs + 1)
    firsts = inputs[:, 0].tolist()
    assert sorted(firsts[:11]) == sorted(firsts[11:]) == list(range(0, 44, 4)) and firsts[:11] != firsts[11:]
    assert torch.equal(Order(ids, 4, seed=7).batch(9, 5)[0], inputs[9:14])
    assert not torch.equal(Order(ids, 4, seed=8).batch(0, 22)[0], inputs)
    with pytest.raises(UsageError, match="less than a context"):
        Order(ids, 45, seed=0)


# --- stopping and going on

SMALL = new_dimensions(263, 2, 16, 2, 8)


def started(words: Path, directory: Path, **other: Any) -> Run[LanguageTrainer]:
    settings = Settings(**{"steps": 9, "batch": 3, "context": 8, "lr": 3e-3, "seed": 5, "validate_every": 3} | other)
    ids = BytePairs(words).encode(TEXT)
    trainer = LanguageTrainer(new_weights(SMALL, settings.seed), SMALL, ids, ids[:100], settings, words)
    return Run(trainer, directory)


def after(steps: int) -> Callable[[], bool]:
    """A stop after so many steps."""
    left = iter(range(steps))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_that_was_stopped_ends_with_the_same_bits(words: Path, tmp_path: Path, bf16: bool) -> None:
    whole = started(words, tmp_path / "whole", bf16=bf16)
    assert whole.go(lambda: False) and whole.finished
    for stop in (1, 1, 2, 3, 9):  # before, at and after validations, at which everything is read anew
        parts = started(words, tmp_path / "parts", bf16=bf16)
        if not parts.go(after(stop)):
            parts.validate_early()
    assert parts.finished and parts.trainer.at == whole.trainer.at
    for name, tensor in whole.trainer.state().items():
        assert torch.equal(tensor, parts.trainer.state()[name]), name
    files = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    kept = sorted(path.name for path in (tmp_path / "parts" / ".training").iterdir())
    assert kept == ["state-9.safetensors", "state.json"]


def test_an_early_validation_is_forgotten_by_a_run_that_goes_on(words: Path, tmp_path: Path) -> None:
    run = started(words, tmp_path)
    assert not run.go(after(4))
    best = load_file(tmp_path / "model.safetensors")  # of the validation at step 3
    assert run.validate_early() < run.trainer.at.best
    early = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(early["transformer.wte.weight"], best["transformer.wte.weight"])
    started(words, tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in best.items())


def test_a_stop_during_a_validation_makes_it_again(words: Path, tmp_path: Path) -> None:
    run = started(words, tmp_path)
    validating: list[int] = []
    run.go(lambda: False, on_validation=lambda loss, done, windows: validating.append(done), abandon=lambda: validating)
    assert run.trainer.at.step == 3 and run.trainer.at.validated == 0
    run = started(words, tmp_path)
    run.go(after(0))
    assert run.trainer.at.step == run.trainer.at.validated == 3


def test_the_worse_weights_do_not_replace_the_best(words: Path, tmp_path: Path) -> None:
    run = started(words, tmp_path)
    run.go(after(3))
    run.trainer.at.best = 0.0
    before = load_file(tmp_path / "model.safetensors")
    run.go(lambda: False)
    assert run.finished and run.trainer.at.best == 0.0
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def test_other_settings_are_refused(words: Path, tmp_path: Path) -> None:
    started(words, tmp_path).go(after(1))
    with pytest.raises(UsageError, match=r"--lr: 0\.003, now 0\.004"):
        started(words, tmp_path, lr=4e-3)
    with pytest.raises(UsageError, match=r"--seed: 5, now 6; the weights at the start"):
        started(words, tmp_path, seed=6)
    (tmp_path / ".training" / "state.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="no state of training"):
        started(words, tmp_path)
    with pytest.raises(UsageError, match="8 positions"):
        started(words, tmp_path, context=9)


def test_divergence_is_an_error_and_keeps_the_last_state(words: Path, tmp_path: Path) -> None:
    run = started(words, tmp_path)
    run.go(after(1))
    with torch.no_grad():
        run.trainer.tensors["ln_f.bias"].fill_(math.nan)
    with pytest.raises(UsageError, match="diverged at step 1"):
        run.trainer.step()
    assert started(words, tmp_path).trainer.at.step == 1


# --- the checkpoint and the command


def test_it_learns_and_transformers_reads_what_it_learned(words: Path, text: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    done, _ = ditto(
        *("--train", text, "--valid", text, "--test", text, "--tokenizer", words, "--out", tmp_path / "out"),
        *(*SIZES, "--steps", 60, "--lr", 2e-2, "--validations", 2),
    )
    assert done["finished"] and done["step"] == 60 and done["tokens"] == 60 * 24 and done["tokens_per_second"] > 0
    assert done["valid_perplexity"] < 15 < 263  # 263 before the first step
    assert done["test_perplexity"] == pytest.approx(done["valid_perplexity"])
    checkpoint = load_checkpoint(tmp_path / "out")
    assert done["parameters"] == sum(t.numel() for t in checkpoint.tensors.values())
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert model.config.eos_token_id == 262 and model.config.architectures == ["GPT2LMHeadModel"]
    ids = BytePairs(tmp_path / "out").encode("the cat sat on").long()[None, :8]
    with torch.no_grad():
        theirs = model(ids).logits
    ours = logits(checkpoint.tensors, forward(checkpoint.tensors, checkpoint.dimensions, ids))
    assert torch.allclose(theirs, ours, atol=1e-4)
    again, _ = ditto(  # a finished run only reports
        *("--train", text, "--valid", text, "--tokenizer", words, "--out", tmp_path / "out"),
        *(*SIZES, "--steps", 60, "--lr", 2e-2, "--validations", 2),
    )
    assert again["finished"] and again["valid_perplexity"] == done["valid_perplexity"]


def test_from_a_checkpoint(words: Path, text: Path, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "from", SMALL.model_copy(update={"epsilon": 1e-4}), new_weights(SMALL, 1), words)
    common = ("--train", text, "--valid", text, "--from", tmp_path / "from", "--epochs", 0.5)
    done, _ = ditto(*common, "--out", tmp_path / "out")
    chunks = (BytePairs(words).encode(TEXT).numel() - 1) // 8
    assert done["steps"] == math.ceil(chunks / 2 / 8) == done["step"]
    assert load_checkpoint(tmp_path / "out").dimensions.epsilon == 1e-4
    ditto(*common, "--out", tmp_path / "quad", "--activation", "quad")
    made = [load_checkpoint(tmp_path / name).dimensions.activation for name in ("quad", "out")]
    assert made == ["quad", "tanh gelu"]
    assert json.loads((tmp_path / "quad" / "config.json").read_text())["activation_function"] == "quad"
    ditto(*common, "--out", tmp_path / "from", code=2)  # never over what it starts from
    ditto(*common, "--out", tmp_path / "other", "--layers", 2, code=2)
    ditto(*common, "--out", tmp_path / "other", "--context", 9, code=2)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signals_and_budgets_stop_between_steps(
    which: signal.Signals, words: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--train", text, "--valid", text, "--tokenizer", words, "--out", tmp_path / "out", *SIZES, "--steps", 6)
    before, step = signal.getsignal(which), LanguageTrainer.step

    def signalled(self: LanguageTrainer) -> float:
        if self.at.step == 2:
            signal.raise_signal(which)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageTrainer, "step", signalled)
        _, stderr = ditto(*common, code=130)
    assert "step 3 of 6" in stderr and signal.getsignal(which) is before
    paused, _ = ditto(*common, "--minutes", 0)
    assert paused["step"] == 3 and not paused["finished"] and paused["valid_perplexity"] > 1
    done, _ = ditto(*common)
    assert done["step"] == 6 and done["finished"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--train": "absent.txt"}, 2, "no such file"),
        ({"--train": "blank.txt"}, 11, "no text"),
        ({"--valid": "short.txt"}, 2, "--valid: 5 tokens"),
        ({"--tokenizer": "nowhere"}, 13, "vocab.json"),
        ({"--heads": 3}, 2, "not a multiple of 3 heads"),
        ({"--epochs": 1}, 2, "one of --epochs and --steps"),
        ({"--from": "x"}, 2, "one of --from"),
        ({"--out": "short.txt"}, 2, "Not a directory"),
    ],
)
def test_errors(
    change: dict[str, Any], code: int, says: str, words: Path, text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("\n")
    Path("short.txt").write_text("abcd\n")
    options = {"--train": text, "--valid": text, "--tokenizer": words, "--out": "out", "--steps": 1}
    options |= dict(zip(SIZES[::2], SIZES[1::2], strict=True)) | change
    _, stderr = ditto(*(part for option in options.items() for part in option), code=code)
    assert says in " ".join(stderr.split())
    assert not Path("out").exists()

"""Distillation of a GPT-2 on a toy: its ranges, the preset's program, Quad, what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from typer.testing import CliRunner

from ditto.cli import app
from ditto.models import Checkpoint, import_calibrated, load_checkpoint
from ditto.models.export import save_gpt2
from ditto.train.distill import Distiller, Settings
from ditto.train.language import new_dimensions, new_weights
from ditto.train.penalty import KNOBS, Watched
from ditto.train.text import BytePairs

TEXT = " the cat sat on the mat , and the dog ran to the hat . it 's red .\n" * 8
CONTEXT = 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights, a little wide before its activation, and a byte-level tokenizer."""
    words, path = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("teacher")
    vocabulary = [*sorted(ByteLevel.alphabet()), "th", "the", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}), encoding="utf-8")
    (words / "merges.txt").write_text("#version: 0.2\nt h\nth e\n", encoding="utf-8")
    d = new_dimensions(len(vocabulary), 1, 16, 2, CONTEXT)
    tensors = {
        name: 20 * t if name[:3] in ("wte", "wpe") or "c_fc.weight" in name else t
        for name, t in new_weights(d, 0).items()
    }
    save_gpt2(path, d, tensors, words)
    return path


@pytest.fixture(scope="module")
def teacher(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


def distiller(teacher: Checkpoint, directory: Path, **changed: object) -> Distiller:
    ids = BytePairs(directory).encode(TEXT)
    settings = Settings(batch=4, longest=CONTEXT, calibrated=8, seq=CONTEXT, validate_every=100)
    return Distiller.on_windows(teacher, ids, ids[: 3 * CONTEXT + 1], replace(settings, **changed))  # type: ignore[arg-type]


def test_ranges_of_a_language_model_move(teacher: Checkpoint, directory: Path) -> None:
    trainer = distiller(teacher, directory, steps=(12, 0, 2), rates=(1e-2, 0.0, 1e-4), budget_mb=0.01, check_every=6)
    while trainer.at.step < trainer.steps:
        trainer.step()
    assert [check.step for check in trainer.checks] == [0, 6, 12]
    assert trainer.checks[-1].widest < 0.95 * trainer.checks[0].widest and trainer.checks[-1].mb < trainer.checks[0].mb


def test_a_language_model_is_watched_as_an_encoder_is(teacher: Checkpoint, directory: Path) -> None:
    trainer = distiller(teacher, directory, steps=(1, 0, 0))
    watched = Watched(trainer.subject.norms)
    trainer.subject.in_floats(teacher.tensors, trainer.subject.batch(0), watched)
    assert {name for _, name in watched.knobs} == set(KNOBS) and watched.neurons[0].shape == (4, 64)


def test_quad_is_learnt_through_the_program_and_imported(directory: Path, tmp_path: Path) -> None:
    """The command line; the loss to the teacher falls, and the checkpoint says what it computes."""
    (tmp_path / "text.txt").write_text(TEXT)
    command = (
        "distill", "--teacher", directory, "--task", "lm", "--train", tmp_path / "text.txt", "--valid",
        tmp_path / "text.txt", "--out", tmp_path / "out", "--preset", "ditto-icml24", "--length", CONTEXT, "--batch", 4,
        "--limit", 16, "--stage2-epochs", 3, "--stage2-lr", 1e-3, "--json",
    )  # fmt: skip
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["finished"] and document["step"] == 12
    student = load_checkpoint(tmp_path / "out")
    description, _ = import_calibrated(student, "x")
    assert student.dimensions.activation == description.dimensions.activation == "quad"
    untrained = distiller(load_checkpoint(directory), directory, preset="ditto-icml24", steps=(0, 0, 1))
    untrained.check()
    trained = distiller(student, directory, preset="ditto-icml24", steps=(0, 0, 1))
    batch, of = untrained.subject.batch(0), untrained.subject
    losses = []
    for trainer in (untrained, trained):
        trainer.check()
        assert trainer.description is not None
        got = of.program(trainer.description)(trainer.adamw.tensors, batch)
        losses.append(of.output_loss(got, of.teacher(batch), batch).item())
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("more", [["--stage1-epochs", "1"], ["--train", "nosuch"], ["--length", "400"]])
def test_what_does_not_fit_is_refused(directory: Path, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    text = str(tmp_path / "text.txt")
    command = ["distill", "--teacher", str(directory), "--task", "lm", "--train", text, "--valid", text, "--out"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "out"), *more])
    assert result.exit_code == 2 and not (tmp_path / "out").exists()

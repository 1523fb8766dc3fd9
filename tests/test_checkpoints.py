"""Checkpoints as users bring them: each works, or is refused in words that say what to do. 8 s, most of it imports."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client import store
from ditto.errors import BadCheckpoint, UnsupportedArchitecture
from ditto.models import ARCHITECTURES, Answer, load_checkpoint
from ditto.models.advice import family
from ditto.models.importer import import_model

pytest.importorskip("transformers")

import checkpoints


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.texts_file(tmp_path_factory.mktemp("texts"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", checkpoints.CASES, ids=lambda case: str(case.name))
def test_it_works_or_says_what_to_do(case: checkpoints.Case, texts: Path, tmp_path: Path) -> None:
    at = checkpoints.made(case, tmp_path)
    result = CliRunner().invoke(app, ["model", "import", str(at), "--calibrate", str(texts), "--name", "m"])
    assert result.exit_code == case.code, result.output
    assert case.says in result.stderr.replace("\n  ", " ") and (store.find("m") is None) == bool(case.code)
    assert "Traceback" not in result.output and "Errno" not in result.output


def test_the_table_has_every_kind_of_answer(tmp_path: Path) -> None:
    """So that the cases above are those that users bring: every family, and every kind of head."""
    works = [case for case in checkpoints.CASES if not case.code]
    loaded = [load_checkpoint(checkpoints.made(case, tmp_path)) for case in works]
    assert {checkpoint.architecture.answer for checkpoint in loaded} == set(Answer)
    families = {family(checkpoint.class_name, ARCHITECTURES)[0] for checkpoint in loaded}
    assert families == {family(name, ARCHITECTURES)[0] for name in ARCHITECTURES}
    assert {case.code for case in checkpoints.CASES} == {
        0, BadCheckpoint.exit_code, UnsupportedArchitecture.exit_code
    }  # fmt: skip


def test_classes_of_one_family() -> None:
    of = functools.partial(family, known=ARCHITECTURES)
    assert of("GPT2Model") == of("GPT2DoubleHeadsModel") == ["GPT2LMHeadModel"]
    assert of("RobertaForCausalLM") == [name for name in ARCHITECTURES if name.startswith("Roberta")]
    assert of("BertLMHeadModel")[0] == "BertModel" and of("ElectraForMultipleChoice")[-1].startswith("Electra")
    assert not of("AlbertModel") and not of("BertweetModel") and not of("XRobertaModel") and not of("")


def test_names_from_a_file_are_not_printed_to_be_run(tmp_path: Path) -> None:
    at = checkpoints.made(checkpoints.CASES[0], tmp_path)
    checkpoints.configured(architectures=["BertForX'); import os; os.system('true"])(at)
    with pytest.raises(UnsupportedArchitecture, match=r"this class is not supported") as refused:
        load_checkpoint(at)
    assert "os.system" not in str(refused.value)


def test_a_tokenizer_of_another_model_beside_calibrated_ranges(texts: Path, tmp_path: Path) -> None:
    """What `ditto distill` left is taken without texts, so that nothing else looks at the tokenizer."""
    at = checkpoints.made(checkpoints.CASES[0], tmp_path)
    checkpoint = load_checkpoint(at)
    description, _ = import_model(checkpoint, "m", texts.read_text().splitlines())
    checkpoints.too_many_words(at)
    with pytest.raises(BadCheckpoint, match="resize_token_embeddings"):
        store.save(description, {}, at)
    assert store.find("m") is None


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no such directory"):
        load_checkpoint(tmp_path / ("x" * 300))

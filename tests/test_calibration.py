"""Calibration that holds: hard texts, learnt margins, what texts are, what others would do; verdicts on answers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generate import SMALL
from test_generate import WORDS as LETTERS
from test_pooling import VOCABULARY, checkpoint
from typer.testing import CliRunner

from ditto.api.sharing import import_checkpoint
from ditto.cli import app
from ditto.client.verdict import together, verdict
from ditto.errors import CalibrationWarning
from ditto.models import Checkpoint, describe, load_checkpoint
from ditto.models.calibration import calibrate, describe_calibrated
from ditto.models.export import save_gpt2
from ditto.models.hard_texts import PROSE, hard_batches, hard_texts
from ditto.models.held_out import RISK, held_out, learnt
from ditto.models.importer import batches_of
from ditto.models.ranges import ACTIVATION_MARGIN, Seen
from ditto.models.vocabulary import kind_of
from ditto.train.language import new_weights

BIG = next(word for word in reversed(VOCABULARY) if word.isalpha())
WORDS = [word for word in VOCABULARY if word.isalpha() and word != BIG]
TEXTS = [" ".join(WORDS[i : i + 6]) for i in range(6)]


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else result.stderr


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("calibrated") / "model")


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


# Margins ----------------------------------------------------------------------------------------------------------


def test_a_learnt_bound_is_the_tails_quantile() -> None:
    """Of Pareto values the estimate's logarithm has a standard deviation of some g / sqrt(k) times log(k / (n RISK)):
    here 0.14. Four of them are allowed."""
    tail, n = 0.1, 400
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (bound,) = learnt([{(0, "ffn"): float(x) ** -tail} for x in draws]).values()
    assert abs(math.log(bound) - math.log(RISK**-tail)) < 4 * 0.14
    (scaled,) = learnt([{(0, "ffn"): 7 * float(x) ** -tail} for x in draws]).values()
    assert scaled == pytest.approx(7 * bound)


def test_nothing_is_learnt_of_few_texts_or_of_a_constant() -> None:
    assert learnt([{(0, "ffn"): 1.0 + i} for i in range(7)]) == {}
    assert learnt([{(0, "ffn"): 2.0}] * 20) == {(0, "ffn"): 2.0}, "within the usual margin"


def test_held_out_texts_are_counted() -> None:
    texts = [{(2, "ffn"): x, (-1, "norm.in"): 1.0} for x in (1.0, 1.0, 1.2, 1.0, 10.0)]
    found = held_out(texts)
    assert found is not None and (found.texts, found.over, found.outside) == (5, 0.2, 0.2)
    assert found.most == pytest.approx(10 / 1.2) and found.place == "layer 2, ffn"
    assert held_out(texts[:1]) is None


def test_floors_widen_and_parts_count_less() -> None:
    seen, other = Seen(), Seen()
    x = torch.tensor([[1.0, -2.0, 1.0]])
    seen(0, "norm1.in", x)
    seen(0, "norm1.out", x)
    other(0, "norm1.in", 4 * x)
    seen.add(other, 1 / ACTIVATION_MARGIN)
    before = seen.norm(0, "norm1")
    assert before.input == 8.0, "as it is, without a margin"
    assert before.variance == pytest.approx((1.0, 2.0 * 16 * 2 / 1.5), rel=0.01)
    seen.widen({(0, "norm1.in"): 9.0, (0, "norm1.in variance"): 1.0, (0, "norm1.in least variance"): 4.0})
    after = seen.norm(0, "norm1")
    assert (after.input, after.output, after.variance) == (9.0, before.output, (0.25, before.variance[1]))


# Texts ------------------------------------------------------------------------------------------------------------


def test_hard_texts_are_of_many_kinds() -> None:
    kinds = hard_texts()
    texts = [text for found in kinds.values() for text in found]
    assert len(kinds) >= 10 and len(texts) == len(set(texts)) >= 80 and all(text.strip() for text in texts)
    assert {"digits", "code", "scripts", "special tokens", "repetition", "capitals", "single", PROSE} <= set(kinds)


@pytest.mark.parametrize("pairs", [False, True])
def test_hard_texts_reach_the_models_length(loaded: Checkpoint, pairs: bool) -> None:
    asked: list[Any] = [("a b", "c")] if pairs else ["a"]
    found = hard_batches(loaded, loaded.tokenizer(), asked)
    assert max(int(batch.mask.sum()) for batch in found) == loaded.dimensions.positions  # type: ignore[union-attr]
    assert any(bool(batch.types.any()) for batch in found) == pairs  # type: ignore[union-attr]


def test_what_calibration_says_of_its_texts(loaded: Checkpoint) -> None:
    done: list[tuple[int, int]] = []
    alone = calibrate(loaded, TEXTS, hard=False)
    with_hard = calibrate(loaded, TEXTS, progress=lambda *now: done.append(now))
    said = alone.assessment
    assert (said.texts, said.longest, said.hard) == (len(TEXTS), 8, 0) and said.positions == 32
    assert any("few" in text and f"{len(TEXTS)} of them" in text for text in said.warnings())
    assert with_hard.assessment.hard >= 80
    every = len(with_hard.batches) + with_hard.assessment.hard
    assert done == [(i, every) for i in range(every + 1)]
    want, _ = describe(loaded, "m", batches_of(loaded, TEXTS))
    assert describe_calibrated(loaded, "m", alone)[0] == want, "too few to learn a margin: as ever"
    wide = with_hard.seen.values()
    assert all(wide[site] >= value for site, value in alone.own.values().items())
    assert any(wide[site] > value for site, value in alone.own.values().items())


def test_ranges_that_do_not_fit_are_left_out(loaded: Checkpoint) -> None:
    found = calibrate(loaded, TEXTS)
    found.seen.widen({(0, "ffn"): 1e7})
    description, _, said = describe_calibrated(loaded, "m", found)
    assert description == describe(loaded, "m", batches_of(loaded, TEXTS))[0]
    assert not said.fit and said.hard == 0 and "do not fit" in said.warnings()[0]


def test_the_python_api_warns(directory: Path, tmp_path: Path) -> None:
    with pytest.warns(CalibrationWarning, match="few"):
        import_checkpoint(directory, "m", TEXTS, None, "secret", tmp_path)


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("##ing", "latin"), ("The", "capitals"), ("é", "accented"), ("42", "digits"), ("дом", "cyrillic"),
        ("…", "punctuation"), ("€", "symbols"), ("中", "cjk"), ("\ufffd", "bytes"), (" ", "white space"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(token: str, kind: str) -> None:
    assert kind_of(token) == kind


# Checks -----------------------------------------------------------------------------------------------------------


def test_model_check(loaded: Checkpoint, directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One word, that the model was not calibrated on, has an embedding fifty times as large."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    source, mine, others = checkpoint(tmp_path / "wild"), tmp_path / "mine.txt", tmp_path / "others.txt"
    _enlarge(source)
    mine.write_text("\n".join(TEXTS) + "\n")
    others.write_text(f"{TEXTS[0]}\n\n{WORDS[0]} {BIG}\n{' '.join(WORDS[:1] * 40)}\n")
    made = run("model", "import", source, "--calibrate", mine, "--only-mine", "--name", "m")
    assert made["calibration"]["texts"] == len(TEXTS) and made["calibration"]["warnings"]
    fine = run("model", "check", "m", "--file", mine, "--strict")
    assert fine["texts"] == len(TEXTS) and fine["texts_outside"] == fine["values_outside"] == 0
    assert fine["compared"]["verdict"] == "same" and fine["verdict"].startswith("in range")
    wild = run("model", "check", "m", "--file", others)
    assert (wild["texts"], wild["texts_outside"]) == (2, 1)
    assert [row["line"] for row in wild["worst"]] == [3] and wild["worst"][0]["place"]
    assert [row["line"] for row in wild["refused"]] == [4] and "out of range: 1 of 2" in wild["verdict"]
    assert run("model", "check", "m", "--file", others, "--limit", 1)["texts"] == 1
    (tmp_path / "long").write_text(" ".join(WORDS[:1] * 40))
    assert run("model", "check", "m", "--file", tmp_path / "long")["verdict"].startswith("nothing checked")
    shown = CliRunner().invoke(app, ["model", "check", "m", "--file", str(others)])
    assert shown.exit_code == 0 and "out of range: 1 of 2" in shown.stdout
    assert CliRunner().invoke(app, ["model", "check", "m", "--file", str(others), "--strict"]).exit_code == 36
    (tmp_path / "empty").write_text("\n")
    run("model", "check", "m", "--file", tmp_path / "empty", code=2)
    run("model", "check", "m", "--file", tmp_path / "nowhere", code=2)
    run("model", "check", "nobody", "--file", mine, code=12)


def test_a_model_that_generates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hard texts in windows of all positions; the next token's logits are compared. A tab is a character."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    path, texts = tmp_path / "gpt2", tmp_path / "texts.txt"
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(LETTERS)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    save_gpt2(path, SMALL, new_weights(SMALL, 3), path)
    texts.write_text("hello there\nand\tmore\n")
    made = run("model", "import", path, "--calibrate", texts, "--name", "w")
    assert made["calibration"]["hard"] > 1 and made["calibration"]["texts"] == 2
    found = run("model", "check", "w", "--file", texts)
    assert found["texts_outside"] == 0 and found["compared"]["verdict"] == "same" and found["texts"] == 2


def _enlarge(source: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
    tensors[name][VOCABULARY.index(BIG)] *= 50
    save_file(tensors, source / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "answers", "reference", "grade", "words"),
    [
        ("vector", [[1.0, 0.0]], [[1.0, 0.001]], "same", "cosine 1.0000 (least)"),
        ("vector", [[1.0, 0.0], [1.0, 0.15]], [[1.0, 0.0], [1.0, 0.0]], "close", "cosine 0.9889"),
        ("vector", [[1.0, 0.0]], [[-1.0, 0.0]], "different", "NOT the same as plaintext"),
        ("vector", [[0.0, 0.0]], [[0.0, 0.0]], "same", "cosine 1.0000"),
        ("vector", [[math.nan, 0.0]], [[1.0, 0.0]], "different", "NOT"),
        ("labels", [[1.0, 3.0]], [[1.0, 3.01]], "same", "1 of 1 label agrees"),
        ("labels", [[0.0, 0.1], [0.0, 2.0]], [[0.1, 0.0], [0.0, 2.0]], "close", "1 of 2 labels agree"),
        ("labels", [[3.0, 0.0]], [[0.0, 3.0]], "different", "0 of 1 label agrees"),
        ("labels", [[0.51]], [[0.5]], "same", "scores differ by 0.0100"),
        ("labels", [[1.0]], [[0.5]], "different", "scores differ by 0.5000"),
        ("labels", [[math.nan]], [[0.5]], "different", "scores differ by inf"),
        ("scores", [[1.0, 9.0]], [[1.0, 9.1]], "close", "scores differ by 0.1000"),
        ("several", [[3.0, 0.01, -3.0]], [[3.0, -0.01, -3.0]], "close", "2 of 3 labels agree"),
        ("several", [[9.0, -4.0]], [[4.0, -9.0]], "same", "2 of 2 labels agree, probabilities within 0.0179"),
        ("tokens", [[[0.0, 5.0], [5.0, 0.0]]], [[[0.0, 5.0], [0.0, 5.0]]], "different", "1 of 2 labels agree"),
        ("span", [[[9.0, 0.0], [0.0, 9.0]]], [[[9.0, 0.0], [0.0, 9.0]]], "same", "2 of 2 labels agree"),
    ],
)  # fmt: skip
def test_verdicts(kind: str, answers: Any, reference: Any, grade: str, words: str) -> None:
    found = verdict(kind, answers, reference)
    assert found.verdict == grade and words in found.text
    assert json.loads(json.dumps(found.document()))["verdict"] == grade


def test_verdicts_of_several_jobs_are_the_worst_ones() -> None:
    same = verdict("labels", [[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]])
    other = verdict("labels", [[2.0, 0.0]], [[0.0, 2.0]])
    found = together([same, other, same])
    assert (found.verdict, found.agreement) == ("different", (4, 5)) and "in the worst of 3 jobs" in found.text
    assert together([same]) == same and together([]).verdict == "same"
    vectors = [verdict("vector", [[1.0, 0.0]], [[1.0, y]]) for y in (0.0, 0.1)]
    assert together(vectors).cosine == vectors[1].cosine

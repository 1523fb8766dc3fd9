"""`ditto evaluate`: a small classifier, encoder and GPT-2 in all modes on one cluster; stopping, files, errors.

Takes 12 s, most of it the cluster's start.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli_model import CONFIG, WORDS, checkpoint, run, shared  # noqa: F401 (fixtures)
from test_finetune import words  # noqa: F401 (fixture)
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client.local_cluster import Cluster, home
from ditto.errors import DamagedFile, EmptyText, PeerLost, TextTooLong, UsageError
from ditto.evaluation.language import logits_of
from ditto.evaluation.modes import in_floats
from ditto.evaluation.records import Record, opened
from ditto.evaluation.run import less
from ditto.evaluation.subject import Difference, chosen, jobs_of
from ditto.evaluation.texts import LabelledTexts, order_of
from ditto.models import architecture_of, load_checkpoint
from ditto.models.architecture import Answer
from ditto.models.export import save_gpt2
from ditto.train.data import TASKS, Example
from ditto.train.language import new_dimensions, new_weights
from ditto.train.perplexity import perplexity
from ditto.train.text import BytePairs

TEXTS = [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(2 + 5 * (i % 3))) for i in range(12)]
DIMENSIONS = architecture_of(CONFIG["architectures"][0]).dimensions(CONFIG)


def evaluate(*args: object, code: int = 0) -> Any:
    found, stderr = run("evaluate", *map(str, args), code=code)
    return found if code == 0 else stderr.replace("\n", " ")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "texts.csv"
    path.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.fixture(scope="module")
def subject(checkpoint: Path) -> LabelledTexts:  # noqa: F811
    loaded = load_checkpoint(checkpoint)
    examples = [Example(text, i % 2) for i, text in enumerate(TEXTS)]
    return LabelledTexts(examples, loaded.tokenizer(), Answer.labels, loaded.dimensions)


# --- what is asked


def test_examples_are_drawn_and_jobs_have_one_width(subject: LabelledTexts) -> None:
    """Up to 14 words and two special tokens are padded to 16, up to 30 words to 32."""
    assert sorted(chosen(12, None, 3)) == list(range(12))
    few, more = chosen(12, 5, 3), chosen(12, 8, 3)
    assert more[:5] == few and few != chosen(12, 5, 4)
    examples = [Example("a " * n, 0) for n in (3, 28, 14, 15, 29, 2, 1)]
    long = LabelledTexts(examples, subject._tokenizer, Answer.labels, DIMENSIONS)
    long.prepare(range(7))
    assert [long.width(row) for row in range(7)] == [16, 32, 16, 32, 32, 16, 16]
    jobs = jobs_of(long, [0, 1, 2, 3, 4, 5, 6], 2, seed=0)
    assert sorted(map(tuple, jobs)) == [(0, 2), (1, 3), (4,), (5, 6)]
    assert jobs == jobs_of(long, [6, 5, 4, 3, 2, 1, 0], 2, seed=0)
    assert all(long.batch(job).shape == (len(job), long.width(job[0])) for job in jobs)


def test_labels_by_name_and_by_number() -> None:
    assert order_of(("negative", "positive"), ("POSITIVE", "NEGATIVE")) == [1, 0]
    assert order_of(("entailment", "not entailment"), ("not_entailment", "entailment")) == [1, 0]
    assert order_of(("negative", "positive"), ("LABEL_0", "LABEL_1")) == [0, 1]
    assert order_of((), ("b", "a")) == [0, 1]


def test_what_does_not_fit_the_model(subject: LabelledTexts) -> None:
    d, tokenizer = DIMENSIONS, subject._tokenizer
    one, three = (d.model_copy(update={"labels": tuple("abc"[:n])}) for n in (1, 3))
    texts, pairs = [Example("a cat", 1)], [Example(("a cat", "a dog"), 2.5)]

    def refused(match: str, *args: Any, error: type[Exception] = UsageError, **options: Any) -> None:
        with pytest.raises(error, match=match):
            LabelledTexts(args[0], tokenizer, *args[1:], **options)

    refused("has 2 labels, the model 3: a, b, c", texts, Answer.labels, three, TASKS["sst2"])
    refused("the model answers with one score", texts, Answer.labels, one, TASKS["sst2"])
    refused("asks for a score", pairs, Answer.labels, three, TASKS["stsb"])
    refused("example 1: label 2.5; the model's are 0 to 1", pairs, Answer.labels, d)
    several, scores = (
        three.model_copy(update={"problem_type": kind}) for kind in ("multi_label_classification", "regression")
    )
    refused("right at once, or none of them \\(a, b, c\\)", texts, Answer.labels, several)
    refused("3 scores", texts, Answer.labels, scores)
    refused("labels of tokens", texts, Answer.tokens, d)
    refused("pairs with scores", texts, Answer.vector, d)
    refused("pairs with scores", pairs, Answer.vector, d, TASKS["rte"])
    refused("of classes, accuracy or mcc", texts, Answer.labels, d, metric="pearson")
    refused("of scores, spearman or pearson", pairs, Answer.vector, d, metric="mcc")
    refused("no example", [], Answer.labels, d, error=EmptyText)
    long = [Example("a cat", 1), Example("cat " * 31, 0)]
    with pytest.raises(TextTooLong, match="example 2: more than the 32 tokens"):
        LabelledTexts(long, tokenizer, Answer.labels, d).prepare([0, 1])
    cut = LabelledTexts(long, tokenizer, Answer.labels, d, truncate=True)
    cut.prepare([0, 1])
    assert cut.batch([1]).mask.sum() == 32 and cut.batch([1]).ids[0, -1] == cut.batch([0]).ids[0, 3]


# --- the file of answers


def record(index: int) -> Record:
    return Record(index, 1.0, {"plain": [0.1, 1 / 3]}, {"plain": {"seconds": 0.5}}, {})


def test_answers_survive_being_killed(tmp_path: Path) -> None:
    path, setup = tmp_path / "answers", {"task": "t", "modes": ["plain"], "seed": 0}
    with opened(path, setup) as answers:
        answers.add([record(3), record(1)])
        with pytest.raises(UsageError, match="by another evaluation"), opened(path, setup):
            pass
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:-7])
    with opened(path, setup) as answers:
        assert answers.records == {1: record(1), 3: record(3)} and path.read_bytes() == whole
        answers.add([record(2)])
    assert path.read_bytes().startswith(whole) and path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(whole[:20])  # not even its first line
    with opened(path, setup) as answers:
        assert not answers.records and path.read_bytes() == whole.splitlines(keepends=True)[0]


def test_answers_of_something_else(tmp_path: Path) -> None:
    path, setup = tmp_path / "answers", {"task": "t", "modes": ["plain"], "seed": 0}
    with opened(path, setup) as answers:
        answers.add([record(0)])
    whole = path.read_text()
    for other, named in (({"seed": 1}, "seed"), ({"modes": ["mpc"], "task": "u"}, "task, modes")):
        with pytest.raises(UsageError, match=f"of another {named}"), opened(path, setup | other):
            pass
    for text in ("text,label\n", "no line", '{"kind": "other"}\n', "\n", "[1]\n"):
        path.write_text(text)
        with pytest.raises(UsageError, match="no file of answers"), opened(path, setup):
            pass
        assert path.read_text() == text
    good = json.loads(whole.splitlines()[1])
    for wrong in (
        {"index": True}, {"label": None}, {"outputs": {"mpc": [1]}}, {"outputs": {"plain": []}},
        {"cost": {"plain": {}}}, {"cost": {"plain": {"seconds": "1"}}}, {"against": {"mpc": [1]}}, {"more": 1},
    ):  # fmt: skip
        path.write_text(whole + json.dumps(good | wrong) + "\n")
        with pytest.raises(DamagedFile, match="line 3"), opened(path, setup):
            pass
    assert Record.read(json.dumps(good | {"against": {"mpc": [1, 0.5]}}), ["plain"]).against == {
        "mpc": Difference(1, 0.5)
    }


def test_difference_of_two_outputs() -> None:
    """The same answers but one of 100: the difference is 0.01, and in a resample as often as that one is drawn."""
    labels = torch.arange(100) % 2
    right = torch.nn.functional.one_hot(labels, 2).double()
    other = right.clone()
    other[7] = 1 - other[7]
    found = less("accuracy", other, right, labels)
    assert found["value"] == pytest.approx(-0.01) and found["interval"] == pytest.approx([-0.03, 0])
    assert less("accuracy", other, other, labels) == {"value": 0, "interval": [0, 0]}


# --- the command


def test_three_modes_agree(shared: str, table: Path, tmp_path: Path) -> None:  # noqa: F811
    """Of 12 texts 9 are asked. What a text costs is its part of its job, as `infer` measures that."""
    answers = tmp_path / "answers.jsonl"
    what = ("--task", table, "--model", shared, "--limit", 9, "--batch", 8, "--in-flight", 1)
    found = evaluate(*what, "--mode", "mpc,fp32,plain", "--answers", answers)
    assert (found["task"], found["model"], found["preset"], found["network"]) == (
        "texts.csv", shared, "ditto", "loopback",
    )  # fmt: skip
    assert (found["examples"], found["chosen"], found["finished"], found["split"]) == (12, 9, True, None)
    rows = {row["mode"]: row for row in found["results"]}
    assert list(rows) == ["fp32", "plain", "mpc"] and all(row["n"] == 9 for row in rows.values())
    for mode, compared in (("fp32", "plain"), ("plain", None), ("mpc", "plain")):
        row = rows[mode]
        assert row["compared_with"] == compared and row["metric"] == "accuracy"
        assert row["interval"][0] <= row["value"] == row["metrics"]["accuracy"]["value"] <= row["interval"][1]
        assert compared is None or 0 < row["largest_difference"] < 0.05
        assert (mode == "fp32") == (row["less_fp32"] is None)
        assert mode == "fp32" or row["less_fp32"]["value"] == row["value"] - rows["fp32"]["value"]
    _, *lines = map(json.loads, answers.read_text().splitlines())
    assert sorted(line["index"] for line in lines) == sorted(chosen(12, 9, 0))
    for mode, row in rows.items():
        right = [line["label"] == (line["outputs"][mode][1] > line["outputs"][mode][0]) for line in lines]
        assert row["value"] == sum(right) / 9
    differing = [(line["outputs"]["mpc"][1] > line["outputs"]["mpc"][0])
                 != (line["outputs"]["plain"][1] > line["outputs"]["plain"][0]) for line in lines]  # fmt: skip
    assert rows["mpc"]["differing"] == sum(differing) / 9
    texts = [arg for line in lines[:8] for arg in ("--text", TEXTS[line["index"]])]
    job = run("infer", "--model", shared, *texts)[0]
    cost = rows["mpc"]
    assert cost["rounds"] == job["online"]["rounds"] and rows["plain"]["rounds"] is None
    assert sum(job["offline"]["bytes_to_party"]) / 8e6 in {line["cost"]["mpc"]["mb_dealer"] for line in lines}
    assert max(job["online"]["bytes_sent"]) / 8e6 in {line["cost"]["mpc"]["mb_party"] for line in lines}
    assert 0 <= cost["out_of_range"] <= 1
    assert cost["online_seconds"] + cost["offline_seconds"] <= cost["seconds"]
    again = evaluate(*what, "--mode", "fp32,plain,mpc", "--answers", answers)
    assert again == found, "nothing was asked again"
    assert "another modes" in evaluate(*what, "--mode", "plain", "--answers", answers, code=2)


def test_stopped_and_gone_on_with(shared: str, table: Path, tmp_path: Path) -> None:  # noqa: F811
    answers = tmp_path / "answers.jsonl"
    what = ("--task", table, "--model", shared, "--batch", 5, "--answers", answers)
    first = evaluate(*what, "--minutes", 0)
    assert not first["finished"] and first["results"][0]["n"] in (2, 5)
    begun = answers.read_text()
    whole = evaluate(*what)
    assert whole["finished"] and whole["results"][0]["n"] == 12 and answers.read_text().startswith(begun)
    alone = evaluate(*what[:-2])
    for field in ("value", "interval", "metrics"):
        assert alone["results"][0][field] == whole["results"][0][field]
    shown = CliRunner().invoke(app, ["evaluate", *map(str, what), "--minutes", "0"])
    assert shown.exit_code == 0 and "all 12 examples" in shown.stdout and "12 of 12" in shown.stderr


def test_interrupted(
    shared: str,  # noqa: F811
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two jobs, or by a server's end: what was answered is kept, and the message says so."""
    from ditto.evaluation import run as module

    what = ["evaluate", "--task", str(table), "--model", shared, "--answers", str(tmp_path / "answers")]
    usual = module.run
    for error, code in ((KeyboardInterrupt(), 130), (PeerLost("party1 is gone", peer="party1"), 21)):

        def stopped(*args: Any, error: BaseException = error) -> Iterator[list[Record]]:
            yield next(usual(*args))
            raise error

        monkeypatch.setattr(module, "run", stopped)
        result = CliRunner().invoke(app, [*what, "--batch", "3"])
        assert result.exit_code == code and "the same command goes on" in result.stderr.replace("\n", " ")
    assert len((tmp_path / "answers").read_text().splitlines()) == 1 + 6


def test_a_model_shared_before_it_was_imported(shared: str, checkpoint: Path, table: Path) -> None:  # noqa: F811
    how = ("model", "import", str(checkpoint), "--calibrate", str(checkpoint / "texts.txt"), "--name", "older")
    run(*how)
    run("model", "share", "older")
    run(*how, "--preset", "puma")
    assert "ditto model share older" in evaluate("--task", table, "--model", "older", "--mode", "mpc", code=2)


def test_a_task_by_name(shared: str, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "sst2").mkdir()
    lines = "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(TEXTS))
    (tmp_path / "sst2" / "dev.tsv").write_text(f"label\tsentence\n{lines}")
    found = evaluate("--task", "sst2", "--data", tmp_path, "--model", shared, "--metric", "mcc", "--limit", 6)
    assert (found["task"], found["split"], found["results"][0]["metric"], found["results"][0]["n"]) == (
        "sst2", "dev", "mcc", 6,
    )  # fmt: skip
    assert "--data" in evaluate("--task", "sst2", "--model", shared, code=2)
    assert "train.tsv" in evaluate("--task", "sst2", "--data", tmp_path, "--model", shared, "--split", "train", code=2)
    assert "asks for a score" in evaluate("--task", "stsb", "--data", pairs_of(tmp_path), "--model", shared, code=2)


def pairs_of(directory: Path) -> Path:
    (directory / "stsb").mkdir(exist_ok=True)
    lines = "".join(f"{TEXTS[i]},{TEXTS[i + 1]},{i / 2}\n" for i in range(0, 10, 2))
    (directory / "stsb" / "dev.csv").write_text(lines)
    return directory


def test_two_vectors_and_their_cosine(
    checkpoint: Path,  # noqa: F811
    shared: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model without a head, shared by the command itself: the cluster of its own is the one that runs here."""
    started: list[int] = []

    @contextlib.contextmanager
    def running(threads: int, quiet: bool) -> Iterator[Cluster]:
        started.append(threads)
        yield Cluster(home())

    monkeypatch.setattr("ditto.cli.evaluate.servers", running)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {n.removeprefix("bert."): t for n, t in tensors.items() if "pooler" not in n and "classifier" not in n}
    save_file(kept, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["BertModel"]}))
    (encoder / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    run("model", "import", str(encoder), "--calibrate", str(checkpoint / "texts.txt"), "--name", "vectors")
    what = ("--task", "stsb", "--data", pairs_of(tmp_path), "--model", "vectors")
    found = evaluate(*what, "--mode", "fp32,plain,mpc", "--local", "--threads", 2, "--no-range-check")
    assert started == [2]
    exact, _, mpc = found["results"]
    assert [row["metric"] for row in found["results"]] == ["spearman"] * 3
    assert mpc["differing"] is None and mpc["out_of_range"] is None
    assert max(exact["largest_difference"], mpc["largest_difference"]) < 0.01
    loaded = load_checkpoint(encoder)
    first, second = (
        torch.tensor(loaded.reference(loaded.tokenizer().encode(TEXTS[at:10:2], 32)), dtype=torch.float64)
        for at in (0, 1)
    )
    cosines = torch.nn.functional.cosine_similarity(first, second)
    scores = torch.arange(0, 10, 2) / 2
    expected = torch.corrcoef(torch.stack((cosines, scores)))[0, 1]
    assert exact["metrics"]["pearson"]["value"] == pytest.approx(float(expected), abs=1e-6)
    floats = evaluate(*what[:4], "--mode", "fp32", "--checkpoint", encoder)["results"][0]
    assert floats["value"] == exact["value"] and floats["preset"] is None


def test_perplexity(shared: str, words: Path, tmp_path: Path) -> None:  # noqa: F811
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat , and the dog ran to the hat .\n" * 8)
    ids = BytePairs(words).encode(text.read_text())
    d = new_dimensions(BytePairs(words).size, layers=1, hidden=16, heads=2, context=16)
    tensors = {name: 20 * t if name.endswith("wte.weight") else t for name, t in new_weights(d, 1).items()}
    save_gpt2(tmp_path / "gpt2", d, tensors, words)
    run("model", "import", str(tmp_path / "gpt2"), "--calibrate", str(text), "--name", "writer")
    run("model", "share", "writer")
    windows = (ids.numel() - 1) // 16
    found = evaluate("--task", text, "--model", "writer", "--mode", "fp32,plain,mpc", "--batch", windows)
    exact, plain, mpc = found["results"]
    ask = in_floats(load_checkpoint(tmp_path / "gpt2"))
    expected = perplexity(logits_of(ask), ids, 16)
    assert exact["value"] == pytest.approx(expected, rel=1e-6) and exact["n"] == windows
    assert exact["interval"][0] < expected < exact["interval"][1]
    for row in (plain, mpc):
        assert row["value"] == pytest.approx(expected, rel=0.01)
    assert 0 < mpc["largest_difference"] < 0.1 and 0 <= mpc["differing"] < 0.05
    few = evaluate("--task", text, "--model", "writer", "--context", 8, "--limit", 3)
    assert few["results"][0]["n"] == 3 and few["examples"] == (ids.numel() - 1) // 8
    assert "at most 16" in evaluate("--task", text, "--model", "writer", "--context", 17, code=2)
    assert math.isfinite(few["results"][0]["value"])


def test_command_lines_that_make_no_sense(shared: str, table: Path, tmp_path: Path) -> None:  # noqa: F811
    named = ("--task", table, "--model", shared)
    assert "of fp32, plain, mpc" in evaluate(*named, "--mode", "bf16", code=2)
    assert "no task known by name" in evaluate("--task", "glue", "--model", shared, code=2)
    assert "--model NAME" in evaluate("--task", table, code=2)
    assert "--checkpoint is for" in evaluate(*named, "--checkpoint", tmp_path, code=2)
    assert "one of --local and --config" in evaluate(*named, "--local", "--config", tmp_path, code=2)
    evaluate("--task", table, "--model", "absent", code=12)
    evaluate(*named, "--mode", "fp32", "--checkpoint", tmp_path, code=13)
    empty = tmp_path / "empty.csv"
    for text in ("", "text,label\n"):
        empty.write_text(text)
        evaluate("--task", empty, "--model", shared, code=11)
    empty.write_text("text,label\na cat,2\n")
    assert "example 1: label 2" in evaluate("--task", empty, "--model", shared, code=2)
    empty.write_text(f"text,label\n{'cat ' * 31},1\n")
    assert "--truncate" in evaluate("--task", empty, "--model", shared, code=10)
    assert evaluate("--task", empty, "--model", shared, "--truncate")["results"][0]["n"] == 1

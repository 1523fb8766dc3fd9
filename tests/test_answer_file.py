"""Files of texts: jobs, answers as JSON lines, what values say, what is seen of lengths, where seconds go. 4 s."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pooling import VOCABULARY, D, checkpoint
from tiny import small_model

from ditto.api.reading import chosen, probabilities
from ditto.cli.answer_file import opened
from ditto.cli.jobs import Tokenized, jobs_of, tokenized
from ditto.cli.predicted import predict
from ditto.cli.said import Reader
from ditto.cli.texts import Question, questions, read_questions
from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UsageError
from ditto.models import Plan, load_checkpoint, parse
from ditto.models.compiled import program_for
from ditto.models.tokenizer import Text, Tokenizer, padded_width
from ditto.net.emulation import network
from ditto.planning.machine import FORMAT
from ditto.wall import OTHER, Wall

BOUND = {"model": "m", "version": "0" * 16, "input": "1" * 16}
LINES = {1, 2, 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("words")
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return Tokenizer.load(directory)


# Lengths ------------------------------------------------------------------------------------------


@given(st.integers(1, 65_536), st.data())
def test_a_padded_length_says_its_bucket_alone(limit: int, data: st.DataObject) -> None:
    """Whatever a model's (or, less the tokens to come, a prompt's) longest text: powers of two, then the limit. All
    lengths between two of them look the same, and there are no more of them than that."""
    buckets = [2**k for k in range(4, 16) if 2**k < limit] + [limit]
    length = data.draw(st.integers(1, limit))
    width = padded_width(length, limit)
    assert width in buckets and width >= length
    before = max((n for n in buckets if n < width), default=0)
    assert before < length, "no smaller one would do"
    other = data.draw(st.integers(before + 1, width))
    assert padded_width(other, limit) == width
    assert len(buckets) <= max(1, math.ceil(math.log2(limit)) - 3), "one for each doubling from 16 on"


@pytest.mark.parametrize("limit", [1, 15, 16, 17, 77, 512, 514, 993, 1024, 4098, 40_000])
def test_all_lengths_of_a_model(limit: int) -> None:
    """Exhaustively: as many lengths look the same as lie between two buckets; so do 702 tokens of 1,024."""
    seen: dict[int, int] = {}
    for length in range(1, limit + 1):
        width = padded_width(length, limit)
        seen[width] = seen.get(width, 0) + 1
    assert max(seen) == limit
    for width, count in seen.items():
        assert width <= 16 or width == limit or count == width // 2


def rows_of(lengths: Sequence[int]) -> Tokenized:
    return Tokenized([([5] * n, [0] * n) for n in lengths], set())


def asked(count: int) -> list[Question]:
    return [Question(f"text {i}", i + 1, f"F, line {i + 1}") for i in range(count)]


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 9), st.data())
def test_jobs_have_every_text_once_and_show_buckets_alone(lengths: list[int], size: int, data: st.DataObject) -> None:
    places = [i for i in range(len(lengths)) if data.draw(st.booleans())]
    jobs = jobs_of(asked(len(lengths)), rows_of(lengths), places, 100, size)
    assert sorted(place for job in jobs for place in job.places) == places
    widths = [job.width for job in jobs]
    assert widths == sorted(widths, reverse=True) and all(job.shape[0] == size for job in jobs[:-1])
    for job in jobs:
        assert job.batch.shape == job.shape
        assert [int(n) for n in job.batch.mask.sum(1)] == [lengths[place] for place in job.places]
    others = []
    for n in lengths:  # any others of the same buckets
        width = padded_width(n, 100)
        others.append(data.draw(st.integers({16: 1, 32: 17, 64: 33, 100: 65}[width], width)))
    again = jobs_of(asked(len(lengths)), rows_of(others), places, 100, size)
    assert [(job.shape, job.places) for job in again] == [(job.shape, job.places) for job in jobs]


def test_what_is_too_long_is_named_or_cut(tokenizer: Tokenizer) -> None:
    texts: list[Text] = ["the cat", "the " * 15, ("the " * 20, "a dog"), "sat"]
    given = [Question(text, 3 * i + 1, f"F, line {3 * i + 1}") for i, text in enumerate(texts)]
    with pytest.raises(TextTooLong, match=r"F, line 4: text of 17 tokens: .* at most 16, and 1 more .*--truncate"):
        tokenized(tokenizer, given, 16, truncate=False)
    found = tokenized(tokenizer, given, 16, truncate=True)
    assert found.cut == {1, 2} and [len(ids) for ids, _ in found.rows] == [4, 16, 16, 3]
    words = [VOCABULARY[token] for token in found.rows[2][0]]
    assert words == ["[CLS]", *["the"] * 11, "[SEP]", "a", "dog", "[SEP]"], "the longer segment loses its end"
    assert tokenized(tokenizer, given[:1], 16, truncate=True).cut == set()


def test_lines_have_their_numbers() -> None:
    """As editors count them: a form feed or a line separator within a text ends no line. Blank lines are counted."""
    found = questions("one\n \n\x0ctwo\u2028more\tb\n\n", "F")
    assert [(q.text, q.number) for q in found.asked] == [("one", 1), (("\x0ctwo\u2028more", "b"), 3)]
    assert found.blank == 2 and found.asked[1].place == "F, line 3"
    assert found.digest != questions("one\n\n\x0ctwo\u2028more\tb\n\n", "F").digest, "every character counts"
    assert questions("", "F").asked == [] and questions("\n", "F").blank == 1
    assert [q.text for q in questions("\ufeffone\n", "F").asked] == ["one"]
    with pytest.raises(EmptyText, match="F, line 2: the pair's second"):
        questions("a\nb\t\n", "F")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(data: bytes) -> list[Text]:
        stream = io.TextIOWrapper(io.BytesIO(data), encoding="ascii", errors="surrogateescape")
        monkeypatch.setattr("sys.stdin", stream)
        return [question.text for question in read_questions(Path("-")).asked]

    assert given("é\r\n\rb".encode()) == ["é", "b"]
    with pytest.raises(UsageError, match="standard input: no text"):
        given(b"a\xff\n")


def test_a_prediction_is_of_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are what the programs state, job by job; seconds only where this machine was measured and the network is
    known."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    description = parse(small_model()[0])
    lengths = [20, 3, 16, 5, 30]
    jobs = jobs_of(asked(5), rows_of(lengths), range(5), 32, 2)
    assert [job.shape for job in jobs] == [(2, 32), (2, 16), (1, 16)]
    costs = [program_for(description.text(), Plan(*job.shape, guard=True)).cost() for job in jobs]
    lan = network("lan")
    found = predict(description, jobs, True, lan)
    assert found.sent == 2 * sum(cost.online for cost in costs) and found.dealt == sum(cost.dealer for cost in costs)
    assert found.held >= max(predict(description, [job], True, lan).held for job in jobs) > 0
    assert found.seconds is None and "--measure" in found.line()
    rate = {role: {"step": 1e-5, "unit": 1e-9} for role in ("deal", "prepare", "online")}
    profile = {"format": FORMAT, "cores": 2, "rates": {"Open/8": rate}}
    (tmp_path / "machine.json").write_text(json.dumps(profile | {"format": FORMAT - 1}))
    assert predict(description, jobs, True, lan) == found, "a profile of another version is as none"
    (tmp_path / "machine.json").write_text(json.dumps(profile))
    each = [predict(description, [job], True, lan).seconds or 0.0 for job in jobs]
    assert min(each) > 0 and predict(description, jobs, True, lan).seconds == pytest.approx(sum(each))
    assert "about " in predict(description, jobs, True, lan).line()
    assert predict(description, jobs, True, None).seconds is None, "on a network that nobody knows"


# Answers ------------------------------------------------------------------------------------------


def fill(path: Path) -> bytes:
    with opened(path, False, BOUND, LINES) as file:
        file.write([{"line": 4, "label": "é"}, {"line": 1, "label": "b"}])
    return path.read_bytes()


def test_a_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = fill(path)
    assert path.stat().st_mode & 0o077 == 0
    assert [json.loads(line)["line"] for line in whole.decode().splitlines()] == [4, 1]
    for half in (b'{"line": 2, "label": "caf\\u00', b'{"li', b"{", b"\xc3"):
        path.write_bytes(whole + half)
        with opened(path, True, BOUND, LINES) as file:
            assert file.done == {4, 1} and path.read_bytes() == whole
            file.write([{"line": 2}])
            assert file.done == {4, 1, 2}
        rows = path.read_bytes()
        assert rows.startswith(whole) and json.loads(rows[len(whole) :]) == {"line": 2} | BOUND
    for start in (b"", b'{"li', b'{"line": 4, "label'):  # nothing of it was whole
        path.write_bytes(start)
        with opened(path, True, BOUND, LINES) as file:
            assert file.done == set() and path.read_bytes() == b""
    path.unlink()
    with opened(path, True, BOUND, LINES) as file:
        assert file.done == set()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": "2" * 16}, "line 1: an answer of another input file"),
        ({"version": "2" * 16}, "another version of the model .or preset."),
        ({"model": "n"}, "another model"),
        ({}, "line 1: an answer of another input file"),  # a line that the input has not
    ],
)
def test_answers_do_not_mix(change: dict[str, str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = fill(path) + b'{"half'
    path.write_bytes(whole)
    with pytest.raises(UsageError, match=says), opened(path, True, BOUND | change, LINES if change else {1, 2}):
        pass
    assert path.read_bytes() == whole, "it is as it was"


@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b"[]\n", b"{}\n", b'{"line": true}\n', b'{"line": 1}\n', b"\xff\n", b"[" * 9999],
)
def test_files_of_others_stay(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for resume in (True, False):
        with pytest.raises(UsageError, match=r"notes\.txt"), opened(path, resume, BOUND, LINES):
            pass
        assert path.read_bytes() == content


def test_one_writer_and_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with (
        opened(path, False, BOUND, LINES),
        pytest.raises(UsageError, match="being written by another command"),
        opened(path, True, BOUND, LINES),
    ):
        pass
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="has to be a regular file"), opened(tmp_path / "fifo", False, BOUND, LINES):
        pass


def test_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with opened(None, False, BOUND, LINES) as file:
        file.write([{"line": 2}])
        assert json.loads(capsys.readouterr().out) == {"line": 2} | BOUND


# What values say ----------------------------------------------------------------------------------


def reader(head: str, tokenizer: Any = None, **changed: Any) -> Reader:
    described: Any = SimpleNamespace(architecture=head, dimensions=D.model_copy(update=changed))
    return Reader(described, tokenizer)


def test_labels_and_scores() -> None:
    kind = "BertForSequenceClassification"
    one = reader(kind, labels=("no", "yes")).fields("a", [0.0, math.log(3)])
    assert one["label"] == "yes" and one["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    several = reader(kind, labels=("x", "y", "z"), problem_type="multi_label_classification")
    found = several.fields("a", [math.log(3), -800.0, 0.0])
    assert found["labels"] == ["x", "z"], "at least 1/2"
    assert found["probabilities"] == pytest.approx({"x": 0.75, "y": 0.0, "z": 0.5})
    assert several.line("a", [-1.0, -1.0, -1.0]).startswith("no label  (")
    for changed in ({"problem_type": "regression"}, {}, {"problem_type": "multi_label_classification"}):
        number = reader(kind, labels=("LABEL_0",), **changed)
        assert number.fields("a", [3.25]) == {"score": 3.25} and number.line("a", [3.25]) == "+3.2500"
    scores = reader(kind, labels=("u", "v"), problem_type="regression")
    assert scores.fields("a", [1.0, -2.0]) == {"scores": {"u": 1.0, "v": -2.0}}
    assert reader("BertModel").fields("a", [1.0, 2.0]) == {}


@given(st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 100), min_size=2, max_size=5))
def test_probabilities_are_such(logits: list[float]) -> None:
    labels = tuple(map(str, range(len(logits))))
    for kind in ("single_label_classification", "multi_label_classification"):
        d = D.model_copy(update={"labels": labels, "problem_type": kind})
        likely = probabilities(logits, d)
        assert all(0 <= p <= 1 for p in likely)
        if kind == "single_label_classification":
            assert sum(likely) == pytest.approx(1) and len(chosen(likely, d)) == 1
        else:
            assert chosen(likely, d) == tuple(label for label, x in zip(labels, logits, strict=True) if x >= 0)


def test_words_and_spans(tokenizer: Tokenizer) -> None:
    """Tokens are put together to words by the characters that they come from; of a pair, of their own segment."""
    text = "The RUNNING cat, café"  # [CLS] the run ##ning cat , cafe [SEP]
    x, y = [2.0, 0.0], [0.0, 2.0]
    tags = reader("BertForTokenClassification", tokenizer, labels=("O", "A"))
    values = [y, x, y, x, x, x, y, x]
    words = tags.fields(text, values)["words"]
    assert [(row["word"], row["label"]) for row in words] == [
        ("The", "O"), ("RUNNING", "A"), ("cat", "O"), (",", "O"), ("café", "A"),
    ]  # fmt: skip
    assert words[1]["probability"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert tags.line(text, values) == "The/O RUNNING/A cat/O ,/O café/A"
    cut = tags.fields(text, values[:4])["words"]
    assert [row["word"] for row in cut] == ["The", "RUN"]
    span = reader("BertForQuestionAnswering", tokenizer, labels=("start", "end"))
    pair = ("a cat", "the dog sat !")  # [CLS] a cat [SEP] the dog sat ! [SEP]
    values = [[0.0, 0.0]] * 9
    values[4], values[5] = [5.0, 0.0], [0.0, 4.0]
    found = span.fields(pair, values)["span"]
    assert found == {"text": "the dog", "tokens": [4, 5], "start": 5.0, "end": 4.0}
    values[4], values[0] = [0.0, 0.0], [9.0, 9.0]
    assert span.fields(pair, values)["span"]["text"] == "", "no answer: the first token's"


def test_a_checkpoint_says_how_its_logits_are_read(tmp_path: Path) -> None:
    """The configuration's problem_type is in the description, where it is not the usual one, and comes back."""
    kind, labels = "BertForSequenceClassification", ("x", "y")
    where = checkpoint(tmp_path / "a", kind, labels=labels, problem_type="multi_label_classification")
    config = json.loads((where / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert load_checkpoint(where).dimensions.problem_type == "multi_label_classification"
    (where / "config.json").write_text(json.dumps(config | {"problem_type": None}))
    usual = load_checkpoint(where).dimensions
    assert usual.problem_type == "single_label_classification" and "problem_type" not in usual.model_dump_json()
    several = usual.model_copy(update={"problem_type": "regression"})
    assert type(usual).model_validate_json(several.model_dump_json()) == several
    (where / "config.json").write_text(json.dumps(config | {"problem_type": "other"}))
    with pytest.raises(BadCheckpoint, match="problem_type 'other': one of single"):
        load_checkpoint(where)


# Seconds ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=20), st.data())
def test_parts_are_the_whole(laps: list[tuple[str, float]], data: st.DataObject) -> None:
    """Disjoint and complete whatever is claimed: nothing is counted twice, what nobody names is other."""
    clock = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditto.wall.time.perf_counter", lambda: clock[0])
        wall, named = Wall(), 0.0
        for part, seconds in laps:
            clock[0] += seconds
            if data.draw(st.booleans()):
                assert wall.lap(part) == pytest.approx(seconds)
                named += seconds
            else:  # claims more or less than there was
                claimed = {part: data.draw(st.floats(-1, 20)), "d": data.draw(st.floats(-1, 20))}
                wall.lap_of(claimed, "rest")
                named += seconds
        clock[0] += 1.5
        found = wall.document()
    assert min(found["parts"].values()) >= 0 and list(found["parts"])[-1] == OTHER
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"]) == pytest.approx(named + 1.5)
    assert found["parts"][OTHER] == pytest.approx(1.5)

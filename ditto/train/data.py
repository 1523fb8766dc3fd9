"""Labelled texts: the tasks that are known by name, and files of one's own."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ditto.errors import EmptyText, UsageError
from ditto.models.tokenizer import Text

Split = Literal["train", "dev"]
Metric = Literal["accuracy", "mcc", "spearman"]
MOST_CLASSES = 1000


class Example(NamedTuple):
    """A text, or a pair of texts, and its label: a class's number, or a score."""

    text: Text
    label: float


@dataclass(frozen=True)
class Task:
    """What is asked of a model. `labels`: the classes' names by number, none where it is a score up to `most`."""

    name: str
    metric: Metric
    labels: tuple[str, ...] = ()
    most: float = 1.0
    pairs: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("sst2", "accuracy", ("negative", "positive")),
        Task("cola", "mcc", ("unacceptable", "acceptable")),
        Task("rte", "accuracy", ("entailment", "not entailment"), pairs=True),
        Task("stsb", "spearman", most=5.0, pairs=True),
    )
}
_FILES = {"stsb": {"train": "train.csv.gz", "dev": "dev.csv"}}
_USUAL = {"train": "train.tsv.gz", "dev": "dev.tsv"}


def examples_of(task: str, split: Split, directory: Path) -> list[Example]:
    """A split of a task from `directory`/<task>, in the file's order. Raises UsageError for what is absent or odd."""
    path = directory / task / _FILES.get(task, _USUAL)[split]
    rows = _rows(path, "," if task == "stsb" else "\t")
    numbered = enumerate(rows, 1)
    match task:
        case "sst2":
            return [_example(path, n, row, 2, (1,), 0) for n, row in numbered if n > 1]
        case "cola":
            return [_example(path, n, row, 4, (3,), 1) for n, row in numbered]
        case "rte":
            return [_example(path, n, row, 4, (0, 1), 2) for n, row in numbered if n > 1]
        case "stsb":
            return [_example(path, n, row, 3, (0, 1), 2) for n, row in numbered]
    raise UsageError(f"task {task!r}: one of {', '.join(TASKS)}")


def examples_from(path: Path) -> list[Example]:
    """A file of one's own: CSV, or tab-separated where its name says .tsv, with a header that names `text` (or `text`
    and `text2`) and `label`. Raises UsageError naming file and line."""
    tabs = ".tsv" in path.suffixes
    header, *rows = _rows(path, "\t" if tabs else ",")
    if "text" not in header or "label" not in header:
        raise UsageError(f"{path}: the first line names its columns: text (and text2 for pairs) and label")
    texts = tuple(header.index(name) for name in ("text", "text2") if name in header)
    label = header.index("label")
    return [_example(path, n, row, len(header), texts, label) for n, row in enumerate(rows, 2)]


def task_of(
    name: Literal["classify", "regress"],
    examples: Sequence[Example],
    labels: Sequence[str] = (),
    metric: Metric = "accuracy",
) -> Task:
    """The task of files of one's own, by all of their examples. `labels`: the classes' names, or LABEL_0, LABEL_1, ….

    Raises UsageError where texts and pairs are mixed, or labels are no classes or all scores 0.
    """
    pairs = isinstance(examples[0].text, tuple)
    if any(isinstance(example.text, tuple) != pairs for example in examples):
        raise UsageError("texts in one file, pairs in another: both of one kind are needed")
    if name == "regress":
        most = max(abs(example.label) for example in examples)
        if not most:
            raise UsageError("all scores are 0")
        return Task(name, "spearman", most=most, pairs=pairs)
    for _, label in examples:
        if label < 0 or label != int(label) or label >= MOST_CLASSES:
            raise UsageError(f"label {label:g}: classes are numbered from 0, and there are {MOST_CLASSES:,} at most")
    count = int(max(label for _, label in examples)) + 1
    if labels and len(labels) < count:
        raise UsageError(f"label {count - 1} has no name: {len(labels)} are given")
    named = tuple(labels) or tuple(f"LABEL_{i}" for i in range(count))
    if len(named) < 2 or len(set(named)) < len(named):
        raise UsageError("two classes or more are needed, each with a name of its own")
    return Task(name, metric, named, pairs=pairs)


def _example(path: Path, line: int, row: list[str], columns: int, texts: tuple[int, ...], label: int) -> Example:
    if len(row) != columns:
        raise UsageError(f"{path}, line {line}: {columns} columns expected, {len(row)} found")
    try:
        value = float(row[label])
    except ValueError:
        raise UsageError(f"{path}, line {line}: the label {row[label][:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise UsageError(f"{path}, line {line}: the label {row[label][:40]!r} is infinite, or no number")
    found = [row[i].strip() for i in texts]
    if not all(found):
        raise UsageError(f"{path}, line {line}: an empty text")
    return Example(found[0] if len(found) == 1 else (found[0], found[1]), value)


def _rows(path: Path, delimiter: str) -> list[list[str]]:
    """The lines of a table that are not blank. Tabs are never quoted."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    if delimiter == "\t":
        rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    else:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    if not rows:
        raise EmptyText(f"{path} holds no line")
    return rows

"""Labelled texts: the tasks that are known by name, and files of one's own."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ditto.errors import EmptyText, UsageError
from ditto.models.tokenizer import Text

Split = Literal["train", "dev"]
Metric = Literal["accuracy", "mcc", "spearman"]


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


def _example(path: Path, line: int, row: list[str], columns: int, texts: tuple[int, ...], label: int) -> Example:
    if len(row) != columns:
        raise UsageError(f"{path}, line {line}: {columns} columns expected, {len(row)} found")
    try:
        value = float(row[label])
    except ValueError:
        raise UsageError(f"{path}, line {line}: the label {row[label][:40]!r} is not a number") from None
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

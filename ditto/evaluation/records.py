"""What was answered so far: one line of JSON an example, in a file that a stopped evaluation goes on with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditto import files, journal
from ditto.errors import DamagedFile, UsageError
from ditto.evaluation.modes import COSTS, MODES, Cost
from ditto.evaluation.subject import Difference
from ditto.journal import Journal
from ditto.models.architecture import Tensors

FORMAT = 1
KIND = "ditto evaluation"
NAMED = "file of answers"
Setup = dict[str, Any]  # what answers depend on: those of two setups do not belong into one file


@dataclass(frozen=True)
class Record:
    """One example. By mode: its outputs, its part of a job's cost (`rounds` are the job's own), and how it differs from
    the mode that others are compared with."""

    index: int
    label: float
    outputs: dict[str, list[float]]
    cost: dict[str, Cost]
    against: dict[str, Difference]

    def line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False) + "\n"

    @classmethod
    def read(cls, line: str, modes: Sequence[str]) -> Record:
        """Raises ValueError for what is no record of these modes."""
        found = files.parse_json(line)
        if not isinstance(found, dict) or found.keys() != {"index", "label", "outputs", "cost", "against"}:
            raise ValueError("not an example's answer")
        index, label, outputs, cost, against = (found[key] for key in cls.__dataclass_fields__)
        right = (
            type(index) is int
            and _number(label)
            and all(isinstance(x, dict) for x in (outputs, cost, against))
            and list(outputs) == list(cost) == list(modes)
            and all(isinstance(row, list) and row and all(map(_number, row)) for row in outputs.values())
            and all(isinstance(row, dict) and row.keys() <= set(COSTS) and "seconds" in row for row in cost.values())
            and all(_number(value) for row in cost.values() for value in row.values())
            and against.keys() <= set(MODES)
            and all(isinstance(row, list) and len(row) == 2 and all(map(_number, row)) for row in against.values())
        )
        if not right:
            raise ValueError("not an example's answer")
        return cls(index, label, outputs, cost, {mode: Difference(*row) for mode, row in against.items()})


def digest_of(tensors: Tensors) -> str:
    """SHA-256 of names and numbers."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {list(tensors[name].shape)}".encode())
        found.update(tensors[name].contiguous().numpy().data)
    return found.hexdigest()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Answers:
    """A file of answers, open: its records by index, and those that are added. Without a path they are in memory."""

    def __init__(self, journal: Journal | None, records: dict[int, Record]) -> None:
        self._journal, self.records = journal, records

    def add(self, records: Sequence[Record]) -> None:
        """A job's records, in one piece, on the disk before the next job begins. Raises StorageError."""
        self.records |= {record.index: record for record in records}
        if self._journal is not None:
            self._journal.append("".join(record.line() for record in records))


@contextlib.contextmanager
def opened(path: Path | None, setup: Setup) -> Iterator[Answers]:
    """Begin a file, or go on with the one that stands there, which nobody else may write meanwhile.

    Its first line says what its answers are of; half a line at its end, of a process that was killed, is cut off.
    Raises UsageError for a file of something else or in use, DamagedFile, StorageError.
    """
    if path is None:
        yield Answers(None, {})
        return
    setup = files.parse_json(json.dumps(setup))
    with journal.opened(path, "evaluation", NAMED) as found:
        yield Answers(found, _begun(path, found, setup))


def _begun(path: Path, found: Journal, setup: Setup) -> dict[int, Record]:
    """The records that are there; the first line is written where there is none."""
    if found.rest and not found.text and not found.rest.startswith(b'{"kind"'):
        raise UsageError(f"{path}: no {NAMED}")
    found.cut()
    if not found.text:
        found.append(json.dumps({"kind": KIND, "format": FORMAT, "setup": setup}) + "\n")
        return {}
    first, *lines = found.text.splitlines()
    _check_setup(path, first, setup)
    records = {}
    for number, line in enumerate(lines, 2):
        try:
            record = Record.read(line, setup["modes"])
        except ValueError as error:
            raise DamagedFile(f"{path}, line {number}: {error}") from None
        records[record.index] = record
    return records


def _check_setup(path: Path, line: str, setup: Setup) -> None:
    try:
        found = files.parse_json(line)
        if found["kind"] != KIND or found["format"] != FORMAT:
            raise ValueError(line)
        former = dict(found["setup"])
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"{path}: no {NAMED}") from None
    wrong = [name for name in (*setup, *former) if setup.get(name) != former.get(name)]
    if wrong:
        named = ", ".join(dict.fromkeys(name.replace("_", " ") for name in wrong))
        raise UsageError(f"{path}: its answers are of another {named}; name another file, or remove it")

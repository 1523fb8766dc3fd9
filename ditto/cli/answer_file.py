"""Answers as JSON lines, one object a text, written as jobs end; a file of them can be gone on with.

Every object stands for itself: it names its line, the input (SHA-256 of the file's text, 16 digits), the model and its
version (of the description: preset and ranges included). So answers of two inputs or two models never mix unseen.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditto import files, journal
from ditto.errors import StorageError, UsageError
from ditto.journal import Journal

KIND = "file of answers"
BINDS = {  # what rows of one file have in common, in words
    "model": "model", "version": "version of the model (or preset)", "input": "input file",
}  # fmt: skip
DIGITS = 16  # of a digest: 64 bits tell versions and inputs apart


class AnswerFile:
    """Where rows go, and the numbers of the lines that were answered before."""

    def __init__(self, path: Path | None, found: Journal | None, bound: dict[str, str], done: set[int]) -> None:
        self._path, self._journal, self._bound, self.done = path, found, bound, done

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """A job's rows in one piece; on the disk before the next job begins, or flushed to stdout. Raises
        StorageError."""
        text = "".join(json.dumps(row | self._bound, allow_nan=False) + "\n" for row in rows)
        if self._journal is not None:
            self._journal.append(text)
        else:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError:
                raise  # whoever reads has enough
            except OSError as error:
                raise StorageError(f"standard output: {error.strerror}") from None
        self.done |= {row["line"] for row in rows}

    def stopped(self, count: int) -> str:
        """What to say to whoever is interrupted."""
        how = "" if self._path is None else f"; with --resume the same command goes on from there ({self._path})"
        return f"stopped after {len(self.done):,} of {count:,} texts{how}"


@contextlib.contextmanager
def opened(path: Path | None, resume: bool, bound: dict[str, str], lines: set[int]) -> Iterator[AnswerFile]:
    """A file, or stdout without a path. What stands there is gone on with (`resume`) or refused.

    `bound` names model, version and input, `lines` the input's lines. Raises UsageError for a file that holds answers
    of another model, version or input, or is no file of answers; the file is then as it was.
    """
    if path is None:
        yield AnswerFile(None, None, bound, set())
        return
    with journal.opened(path, "command", KIND) as found:
        done = _done(path, found, resume, bound, lines)
        found.cut()
        yield AnswerFile(path, found, bound, done)


def _done(path: Path, found: Journal, resume: bool, bound: dict[str, str], lines: set[int]) -> set[int]:
    if not resume and (found.text or found.rest):
        raise UsageError(f"{path} holds something already: --resume goes on with it; else remove it, or name another")
    if found.rest and not found.text and not found.rest.startswith(b'{"line": '[: len(found.rest)]):
        raise UsageError(f"{path}: no {KIND}")
    done = set()
    for number, line in enumerate(found.text.split("\n")[:-1], 1):
        row = _row(line)
        if row is None:
            raise UsageError(
                f"{path}, line {number}: no answer of `ditto infer`; name another file, or remove this one"
            )
        other = next((said for name, said in BINDS.items() if row[name] != bound[name]), None)
        if other is None and row["line"] not in lines:
            other = BINDS["input"]
        if other is not None:
            raise UsageError(f"{path}, line {number}: an answer of another {other}; name another file, or remove it")
        done.add(row["line"])
    return done


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = files.parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("line")) is not int:
        return None
    return row if all(isinstance(row.get(name), str) for name in BINDS) else None

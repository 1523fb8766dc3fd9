"""A file of lines that one process appends to, and a later one goes on with."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ditto import files
from ditto.errors import StorageError, UsageError


class Journal:
    """Open, and nobody else's meanwhile. `text` are the whole lines that stood there; `rest` is what follows the last
    of them: half a line of a process that was killed while it wrote."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
        self._whole = data[: data.rfind(b"\n") + 1]
        self.text, self.rest = self._whole.decode("utf-8"), data[len(self._whole) :]

    def cut(self) -> None:
        """Drop the rest: once it is known that the file is what it should be."""
        if self.rest:
            os.ftruncate(self._descriptor, len(self._whole))

    def append(self, text: str) -> None:
        """Whole lines, on the disk when this returns. Raises StorageError."""
        try:
            data = text.encode()
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from None


@contextlib.contextmanager
def opened(path: Path, whose: str, kind: str) -> Iterator[Journal]:
    """Begin a file, which only its owner may read, or open the one that stands there.

    Raises UsageError if it is written meanwhile by another of `whose`, or is no `kind` since it is no file or no text;
    StorageError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, files.PRIVATE)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{path}: {kind} has to be a regular file")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{path} is being written by another {whose}") from None
        try:
            found = Journal(path, descriptor)
        except UnicodeDecodeError:
            raise UsageError(f"{path}: no {kind}") from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        yield found
    finally:
        os.close(descriptor)

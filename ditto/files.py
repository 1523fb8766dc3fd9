"""Files and directories replaced as a whole.

What is written goes into a fresh neighbour, then to the disk, then by one rename to its place: there is never half a
file where a whole one is expected, and never a moment in which others can read a private one. Two writers at once do
not mix: one of them is last. A full or write-protected disk is a StorageError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ditto.errors import StorageError

PRIVATE, PUBLIC = 0o600, 0o666  # of files; the umask takes its part
_FRESH = re.compile(r"\.[0-9a-f]{16}\.new")
_ABANDONED = 86400.0  # seconds: no writer takes a day


def read_json(path: Path) -> Any:
    """A document of others, or of an older self. Raises OSError, and ValueError for what is no JSON in UTF-8."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError for what is no JSON, also for what is nested deeper than can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write(path: Path, data: bytes | str, mode: int = PUBLIC) -> None:
    """Replace a file by these bytes, or by this text in UTF-8."""
    with replacing(path, mode) as fresh:
        fresh.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = PUBLIC) -> Iterator[Path]:
    """An empty file to fill. When the block ends it takes the place of `path`; when the block fails it is gone."""
    fresh = _neighbour(path, "new")
    with _writing(path):
        _sweep(path.parent)
        try:
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield fresh
            _to_disk(fresh)
            fresh.replace(path)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
        _rename_to_disk(path)


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """The same for a directory, which only its owner may enter. Parents are made.

    A directory that is not empty cannot be replaced in one step: the old one moves aside first, and comes back if the
    fresh one cannot take its place.
    """
    fresh, old = _neighbour(path, "new"), _neighbour(path, "old")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        try:
            fresh.mkdir(mode=0o700)
            yield fresh
            for inner in fresh.rglob("*"):
                if inner.is_file():
                    _to_disk(inner)
            if path.exists():
                path.rename(old)
            try:
                fresh.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        _rename_to_disk(path)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a private file, where there is one; on the disk when this returns. A write that is cut off
    leaves a part of `data` there."""
    with _writing(path):
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            _to_disk(path.parent)


def remove(path: Path) -> None:
    """Remove a file, where there is one; on the disk when this returns."""
    with _writing(path):
        path.unlink(missing_ok=True)
    _rename_to_disk(path)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory where there is none, and its parents."""
    with _writing(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(path: Path, timeout: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Alone, among all processes and threads that ask for this file, until the block ends or the process does.

    The file stays. `waiting` is called once if another one is in its block. Raises TimeoutError.
    """
    with _writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)  # not inherited: a child must not hold the lock
    try:
        if not _lock(descriptor):
            waiting()
            deadline = time.monotonic() + timeout
            while not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _neighbour(path: Path, ending: str) -> Path:
    """On the same file system, hidden, and of a name that nobody else has."""
    return path.with_name(f".{secrets.token_hex(8)}.{ending}")


def _sweep(directory: Path) -> None:
    """Remove what killed processes left half-written here."""
    for path in directory.glob(".*.new"):
        remove_abandoned(path, _ABANDONED)


def remove_abandoned(path: Path, age: float | None) -> bool:
    """Remove what a writer of this module never put into its place, and nobody changed for `age` seconds; without an
    age, at once: for who knows that there is no other writer."""
    with contextlib.suppress(OSError):
        if _FRESH.fullmatch(path.name) and (age is None or time.time() - path.stat().st_mtime > age):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return True
    return False


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _to_disk(path: Path) -> None:
    """A name must not be on the disk before its content: a power cut leaves the old file or the new one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_disk(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot, and the file is in its place already
        _to_disk(path.parent)

"""Standard input, output and errors that are closed, full, or pipes that nobody reads any more."""

import contextlib
import errno
import os
import sys
from typing import TextIO

from ditto.errors import StorageError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF)
UNREAD = 141  # exit code: what a shell says of a tool that ended, as usual, when nobody read its output (SIGPIPE)


def open_closed() -> None:
    """A stream that was closed before the start is None to Python. Then input is empty, output cannot be written, which
    is an error where something is, and messages go nowhere. No other file takes their numbers."""
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def unwritable(error: OSError) -> StorageError:
    """Of what a command prints. Nothing more is written there: the interpreter would try at its end."""
    _discard(sys.stdout)
    return StorageError(f"cannot write to standard output: {error.strerror}")


def unread() -> int:
    """The exit code where output, or messages, are read no longer. Nothing more is written."""
    _discard(sys.stdout)
    _discard(sys.stderr)
    return UNREAD


def settle() -> None:
    """What is left to be written is, or is discarded: the interpreter would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

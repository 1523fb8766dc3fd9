"""The files that `--report` and `--trace` name."""

from __future__ import annotations

import os
from pathlib import Path

from ditto.errors import UsageError


def target(path: Path | None, option: str = "--report") -> Path | None:
    """Where the file will go, checked before any work is done. Raises UsageError."""
    if path is None:
        return None
    whole = path.resolve()  # a link stays one: what it leads to is replaced
    if not whole.parent.is_dir():
        raise UsageError(f"{option} {path}: no directory {whole.parent}")
    if whole.exists() and not whole.is_file():
        raise UsageError(f"{option} {path}: not a file")
    if not os.access(whole.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {whole.parent} is not writable")
    return whole

"""Where this user's `ditto serve` is: a note, a lock that its process holds, a socket. Quick to import."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ditto import files

NOTE, LOCK, SOCKET = "serve.json", "serve.lock", "serve/socket"


def socket_path(home: Path) -> Path:
    """In a directory of its own, since `home` may be open to others."""
    return home / SOCKET


def read(home: Path) -> dict[str, Any] | None:
    """The note, if it is whole: of one that runs, or of one that was killed (`running` tells)."""
    try:
        found = files.read_json(home / NOTE)
        return found if isinstance(found["address"], str) and isinstance(found["pid"], int) else None
    except (OSError, LookupError, TypeError, ValueError):
        return None


def running(home: Path) -> dict[str, Any] | None:
    """The note of one that runs: its process holds the lock, which goes with the process."""
    if not (home / LOCK).exists():
        return None
    try:
        with files.locked(home / LOCK, 0, lambda: None):
            return None
    except TimeoutError:
        return read(home)
    except Exception:  # a home that cannot be written has no server of this user's
        return None


def private(directory: Path) -> bool:
    """A directory, no link, of this user, which nobody else may enter or change."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077

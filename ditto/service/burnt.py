"""Words that are used up for good: an append-only file, on the disk before whatever they are used up for."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from ditto import files
from ditto.errors import StorageError

_WORD = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]+)?")


class Burnt:
    """The words of one file, a line each. Any thread may ask and add.

    A write that was cut off (a full disk, the end of the power) leaves a piece of a word, which is none: whatever it
    was to be used up for has not begun. What is added after it begins a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            lines = path.read_text(errors="replace").split("\n")
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        self._words = {line for line in lines if _WORD.fullmatch(line)}

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def __len__(self) -> int:
        return len(self._words)

    def add(self, word: str) -> bool:
        """Use a word up; False if it was before. In memory even if the disk does not take it: raises StorageError."""
        if not _WORD.fullmatch(word):
            raise ValueError("no word of this list")
        with self._lock:
            if word in self._words:
                return False
            self._words.add(word)
            files.append(self._path, f"\n{word}\n".encode())
        return True

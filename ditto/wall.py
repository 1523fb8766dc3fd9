"""Where the seconds of a request go, as whoever waits for it sees them.

Moments are a line: every one of them is in exactly one part, since a lap ends where the next one begins. So the parts
are disjoint, and their sum is the whole; what nobody named is `other`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

OTHER = "other"


class Wall:
    """Laps from `began` (of time.perf_counter; default: now) on, added up by name."""

    def __init__(self, began: float | None = None) -> None:
        self._began = self._last = time.perf_counter() if began is None else began
        self._parts: dict[str, float] = {}

    @classmethod
    def of_this_process(cls) -> Self:
        """From the start of the interpreter on, where that is known and this process was started for one command."""
        return cls(_process_began)

    def lap(self, part: str) -> float:
        """The seconds since the last lap are of this part. Returns them."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._add(part, seconds)
        return seconds

    def lap_of(self, parts: Mapping[str, float], rest: str = OTHER) -> None:
        """The seconds since the last lap are of these parts; what is left is `rest`. Where the parts are more, since
        they began before that lap (a job beside another), each is of it by its share."""
        now = time.perf_counter()
        left, self._last = now - self._last, now
        named = sum(max(0.0, seconds) for seconds in parts.values())
        scale = min(1.0, left / named) if named > 0 else 1.0
        for part, seconds in parts.items():
            taken = min(max(0.0, seconds) * scale, left)
            self._add(part, taken)
            left -= taken
        self._add(rest, left)

    def _add(self, part: str, seconds: float) -> None:
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    def document(self) -> dict[str, Any]:
        """`seconds` since the beginning, and the `parts` that they are the sum of, in the order in which they came."""
        self.lap(OTHER)
        parts = {part: seconds for part, seconds in self._parts.items() if part != OTHER}
        parts[OTHER] = self._parts[OTHER]
        return {"seconds": self._last - self._began, "parts": parts}


_process_began: float | None = None


def count_from_the_process() -> None:
    """Called by the console script: the process was started for one command, so its start is the user's wait, too."""
    global _process_began
    now, age = time.perf_counter(), _age()
    _process_began = now - age


def _age() -> float:
    """Seconds since this process was started, to 1/100; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the machine was
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0

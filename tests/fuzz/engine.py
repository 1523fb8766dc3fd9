"""What both engines do with an input: give it to the target, note how many there were, keep what is a finding."""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

from fuzz import run
from fuzz.registry import TARGETS
from fuzz.source import Source
from fuzz.target import measure_memory, peak

ROOM = 8 << 30  # bytes of addresses beyond what the process has when it begins
WARM = 200  # inputs, after which one alone may not raise the peak
SAY = 200  # inputs between two notes of how many there were: a process may be killed


class Engine:
    def __init__(self, arguments: list[str]) -> None:
        name, inputs, seed, said, corpus, seconds = arguments
        self.target, self.inputs, self.seed = TARGETS[name], int(inputs), int(seed)
        self.seconds, self._said, self._corpus = float(seconds), Path(said), Path(corpus)
        self.scratch = self._said.parent
        self.done, self._finding = 0, ""
        run.quiet()
        self.target.replay(self.target.build(Source(b"")))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))

    def one(self, data: bytes) -> None:
        self.done += 1
        if self.done == WARM:
            measure_memory(True)
        given = self.target.build(Source(data))
        try:
            self.target.replay(given)
        except BaseException as error:
            self.say("".join(traceback.format_exception_only(error)).strip(), given)
            raise
        if self.done % SAY == 0 or self.done >= self.inputs:
            self.say()

    def say(self, finding: str = "", given: bytes = b"") -> None:
        """Written to a file, since an engine may end the process in its own way."""
        if finding:  # the last one: hypothesis goes on to shorten it
            self._finding = f"{finding} ({run.keep(self._corpus, given)})"
        document = {"inputs": self.done, "peak": peak(), "finding": self._finding}
        self._said.write_text(json.dumps(document))


def arguments() -> list[str]:
    return sys.argv[1:7]

"""A target, and what holds for each of its inputs: only errors that a user can meet, in time, in bounded memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ditto.errors import DittoError
from fuzz.source import Source

SECONDS = 10  # for one input; not derived: most take a thousandth of one
GROWTH = 64 << 20  # bytes by which one input may raise the process's peak, beside EACH of its own; not derived
EACH = 64
_measured = False
_unseen: list[str] = []  # what ended a thread


class Finding(AssertionError):
    """What must not come of any input."""


@dataclass(frozen=True)
class Target:
    """`build` makes an input of choices; `check` gives it to the product, which may raise DittoError. `seeds`: valid"""

    name: str
    build: Callable[[Source], bytes]
    check: Callable[[bytes], None]
    slow: bool = False  # tenths of a second an input: fewer of them in the tests

    def __call__(self, data: bytes) -> None:
        """Any bytes."""
        self.replay(self.build(Source(data)))

    def replay(self, given: bytes) -> None:
        """An input as it is kept. Raises whatever the product must not raise, and Finding."""
        with _bounded(len(given)), contextlib.suppress(DittoError):
            self.check(given)


def _ended(of: Any) -> None:
    _unseen.append("".join(traceback.format_exception(of.exc_type, of.exc_value, of.exc_traceback)))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(on: bool) -> None:
    """Once everything is imported and warm: from here on, an input that raises the peak is a finding."""
    global _measured
    _measured = on


@contextlib.contextmanager
def _bounded(size: int) -> Iterator[None]:
    before = peak() if _measured else 0
    hook, threading.excepthook = threading.excepthook, _ended
    try:
        with _deadline():
            yield
    finally:
        threading.excepthook = hook
    if _unseen:
        raise Finding(_unseen.pop())
    if _measured and peak() - before > GROWTH + EACH * size:
        raise Finding(f"{(peak() - before) >> 20} MiB more memory for an input of {size} bytes")


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """By the alarm clock, unless it is another's (a fuzzer's own) or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGALRM) is None:
        yield
        return

    began = time.process_time()

    def late(*_: Any) -> None:
        raise Finding(f"no end within {SECONDS} s, {time.process_time() - began:.1f} s of them computing")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

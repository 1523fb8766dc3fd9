"""One thing that was looked at: how it is, what was found, what to do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from ditto.errors import DittoError

STEP_S = 5.0  # that one step may take
T = TypeVar("T")


class Verdict(StrEnum):
    ok = "ok"
    warning = "warning"
    failed = "failed"


@dataclass(frozen=True)
class Finding:
    """`subject`: "this machine", "client", or a server's role. `code` and `exit_code`: of the error that what failed
    stands for."""

    subject: str
    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    code: str | None = None
    exit_code: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "subject": self.subject, "check": self.check, "verdict": self.verdict.value, "found": self.found,
            "advice": self.advice or None, "code": self.code,
        }  # fmt: skip

    def as_fine(self, why: str) -> Finding:
        return replace(self, verdict=Verdict.ok, found=f"{self.found}; {why}", advice="", code=None, exit_code=0)


def ok(subject: str, check: str, found: str) -> Finding:
    return Finding(subject, check, Verdict.ok, found)


def warning(subject: str, check: str, found: str, advice: str) -> Finding:
    return Finding(subject, check, Verdict.warning, found, advice)


def failed(subject: str, check: str, error: DittoError, advice: str) -> Finding:
    return Finding(subject, check, Verdict.failed, str(error), advice, error.code, error.exit_code)


def verdict(findings: list[Finding]) -> Verdict:
    """The worst."""
    return max((f.verdict for f in findings), key=list(Verdict).index, default=Verdict.ok)


def exit_code(findings: list[Finding]) -> int:
    """Of the first that failed, else 0."""
    return next((f.exit_code for f in findings if f.verdict is Verdict.failed), 0)


def aside(call: Callable[[], T]) -> Callable[[float | None], T]:
    """Begin a call in a thread that nobody has to wait for. What comes back waits so many seconds for its end, and
    raises what it raised, or TimeoutError."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, name="doctor", daemon=True).start()

    def result(seconds: float | None) -> T:
        try:
            value, error = done.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # of a call that raised nothing

    return result

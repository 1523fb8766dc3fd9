"""Jobs of one caller, several in flight: while one waits on the network, another computes. Answers come in the order of
the jobs, whatever ends first.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ditto.errors import Busy, ClusterError, Interrupted, UsageError

if TYPE_CHECKING:
    import asyncio

J = TypeVar("J")
T = TypeVar("T")

IN_FLIGHT, MOST = 2, 8
# What servers may say to a job for no other reason than that another one of this client is under way: no room for it,
# and inputs that come late, since two jobs bring theirs.
REFUSED = (Busy, ClusterError)
Refused = Callable[[BaseException], None]


def checked(in_flight: int) -> int:
    """Raises UsageError."""
    if not 1 <= in_flight <= MOST:
        raise UsageError(f"{in_flight} jobs in flight: 1 to {MOST}")
    return in_flight


class Ending:
    """By which a job under way is ended from another thread."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), False
        self._calls: list[Callable[[], object]] = []

    def on(self, call: Callable[[], object]) -> None:
        """To be called when the job is to end; at once if it was to before."""
        with self._lock:
            self._calls.append(call)
            ended = self._ended
        if ended:
            call()

    def check(self) -> None:
        """Raises Interrupted if the job is to end."""
        if self._ended:
            raise Interrupted()

    def end(self) -> None:
        """Can be repeated."""
        with self._lock:
            self._ended, calls = True, list(self._calls)
        for call in calls:
            call()


@dataclass(frozen=True)
class Landed(Generic[J, T]):
    """`seconds`: since the job before it was there, or since it began, if that was later. So those of all jobs are the
    time in which any was under way, however many were."""

    job: J
    value: T
    seconds: float


class Window(Generic[J, T]):
    """Which job begins next, and whose answer comes next. It asks nothing and waits for nothing: who has the threads
    does.

    1. At most `size` have begun and are not given: who takes answers slowly is not run away from.
    2. A job that is refused (REFUSED) while another was under way is asked again when none is, and from then on there
       is one at a time. So whatever one at a time would finish, this does.
    3. After an error no later job begins. Those before it do, and the error is raised after their answers.
    """

    def __init__(self, jobs: Iterable[J], size: int, refused: Refused = lambda error: None) -> None:
        """`refused` is told what the first job was refused with."""
        self._refused = refused
        self._jobs, self._size = enumerate(jobs), checked(size)
        self._begun: dict[int, tuple[J, float]] = {}  # not given yet, and when
        self._running: set[int] = set()
        self._beside: set[int] = set()  # of these, who has not been alone all the time
        self._again: list[int] = []
        self._answers: dict[int, tuple[T, float]] = {}
        self._errors: dict[int, BaseException] = {}
        self._given, self._last = 0, 0.0
        self._exhausted = False
        self._alone = size == 1  # one at a time

    def begin(self) -> Iterator[tuple[int, J]]:
        """What is to be asked now, each with its number."""
        while len(self._running) < (1 if self._alone else self._size) and (found := self._next()) is not None:
            at, job = found
            self._begun[at] = job, time.perf_counter()
            self._running.add(at)
            if len(self._running) > 1:
                self._beside |= self._running
            yield at, job

    def _next(self) -> tuple[int, J] | None:
        if self._again and self._again[0] < min(self._errors, default=self._again[0] + 1):  # 3
            at = self._again.pop(0)
            return at, self._begun[at][0]
        if self._errors or self._exhausted or len(self._begun) >= self._size:  # 1
            return None
        found = next(self._jobs, None)
        self._exhausted = found is None
        return found

    def ended(self, at: int, asked: Future[T] | asyncio.Future[T]) -> None:
        """What was asked for it is done."""
        if (error := asked.exception()) is not None:
            self.failed(at, error)
        else:
            self.answered(at, asked.result())

    def answered(self, at: int, value: T) -> None:
        self._running.discard(at)
        self._answers[at] = value, time.perf_counter()

    def failed(self, at: int, error: BaseException) -> None:
        self._running.discard(at)
        if isinstance(error, REFUSED) and at in self._beside:  # 2
            self._beside.discard(at)
            self._again = sorted([*self._again, at])
            if not self._alone:
                self._refused(error)
            self._alone = True
        else:
            self._errors[at] = error

    @property
    def ready(self) -> bool:
        return self._given in self._answers or self._given in self._errors

    @property
    def over(self) -> bool:
        """Only after `begin`."""
        return self._exhausted and not self._begun

    def give(self) -> Landed[J, T]:
        """The next answer, if it is `ready`; raises what its job ended with."""
        at = self._given
        if at in self._errors:
            raise self._errors[at]
        (value, ended), (job, began) = self._answers.pop(at), self._begun.pop(at)
        self._given += 1
        since, self._last = max(self._last, began), max(self._last, ended)
        return Landed(job, value, max(0.0, ended - since))


def flown(
    jobs: Iterable[J],
    ask: Callable[[J, Ending], T],
    in_flight: int = IN_FLIGHT,
    refused: Refused = lambda error: None,
) -> Generator[Landed[J, T], None, None]:
    """The answer of each job, in order: `ask` is called in threads, `in_flight` at once, with what ends it there.
    `refused` is told if there is one at a time from then on, and why.

    Nothing is asked before the first answer is wanted. Raises what the first job in order that failed ended with, after
    the answers before it. However it ends, close it (contextlib.closing): what is under way is told to end then, and
    its end is awaited.
    """
    size = min(checked(in_flight), len(jobs) or 1) if isinstance(jobs, Sequence) else checked(in_flight)
    if size == 1:  # in the caller's own thread, which an interrupt reaches
        for job in jobs:
            began = time.perf_counter()
            value = ask(job, Ending())
            yield Landed(job, value, time.perf_counter() - began)
        return
    window: Window[J, T] = Window(jobs, size, refused)
    flying: dict[Future[T], tuple[int, Ending]] = {}

    def begin() -> None:
        for at, job in window.begin():
            ending = Ending()
            flying[pool.submit(contextvars.copy_context().run, ask, job, ending)] = at, ending

    with ThreadPoolExecutor(size, "flight") as pool:
        try:
            begin()
            while not window.over:
                while window.ready:
                    found = window.give()
                    begin()
                    yield found
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    at, _ = flying.pop(future)
                    window.ended(at, future)
                begin()
        finally:
            for _, ending in flying.values():
                ending.end()

"""Whose turn it is: a bound on the requests that are here at once, and on the jobs that run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ditto.client.flight import REFUSED
from ditto.errors import Busy

T = TypeVar("T")

ALONE_S = 60.0  # so long after a refusal there is one job at a time


@dataclass(eq=False)
class Turn:
    """Of one job. `beside`: another one was under way at some time of it."""

    beside: bool = False


class Turns:
    """Requests hold a place from their first job to their last; jobs, whosever they are, wait in one line, and a few
    run beside each other. So a request of one job does not wait for all jobs of a long one, nor for one that runs."""

    def __init__(self, jobs: int, waiting: int) -> None:
        """`jobs` at once, and `waiting` more requests than that."""
        self._line, self._slots = asyncio.Lock(), asyncio.Semaphore(jobs)
        self._jobs, self.places = jobs, jobs + waiting
        self.held = 0
        self._running: set[Turn] = set()
        self._alone_until = 0.0
        self._seconds = 1.0  # of a job, a moving mean

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def ahead(self) -> int:
        """So many requests before the last one have no job that can run yet; none if not positive."""
        return self.held - self._jobs

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Raises Busy where all are taken."""
        if self.held >= self.places:
            seconds = max(1.0, self._seconds / self._jobs)
            raise Busy(f"{self.held} requests are here already: ask again in {seconds:.0f} s", retry_s=seconds)
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def run(self, ask: Callable[[], Awaitable[T]]) -> T:
        """A job in its turn. One that the servers refuse while another is under way has a further turn, alone, and so
        have those of the next minute: what one at a time would finish, this does."""
        async with self.turn() as turn:
            try:
                return await ask()
            except REFUSED:
                if not self.refused(turn):
                    raise
        async with self.turn():
            return await ask()

    def refused(self, turn: Turn) -> bool:
        """May it be for no other reason than the jobs beside it? Then the next turns are one at a time."""
        if turn.beside:
            self._alone_until = _now() + ALONE_S
        return turn.beside

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Of one job."""
        slots = await self._taken()
        turn, began = Turn(), _now()
        self._running.add(turn)
        if len(self._running) > 1:
            for each in self._running:
                each.beside = True
        try:
            yield turn
        finally:
            self._running.discard(turn)
            self._give(slots)
            self._seconds += 0.2 * (_now() - began - self._seconds)

    async def _taken(self) -> int:
        """Slots, as many as the turn needs; who waits for several is not passed."""
        taken = 0
        async with self._line:
            try:
                while taken < (self._jobs if _now() < self._alone_until else 1):
                    await self._slots.acquire()
                    taken += 1
            except BaseException:  # cancelled
                self._give(taken)
                raise
        return taken

    def _give(self, slots: int) -> None:
        for _ in range(slots):
            self._slots.release()


def _now() -> float:
    return asyncio.get_running_loop().time()

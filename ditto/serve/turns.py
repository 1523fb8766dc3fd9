"""Whose turn it is: a bound on the requests that are here at once, and on the jobs that run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ditto.errors import Busy


class Turns:
    """Requests hold a place from their first job to their last, and take turns with each job, or the few that are in
    flight at once: first come, first served, so that a request of one job does not wait for all jobs of a long one."""

    def __init__(self, jobs: int, waiting: int) -> None:
        """`jobs` at once, and `waiting` more requests than that."""
        self._turns = asyncio.Semaphore(jobs)
        self._jobs, self.places = jobs, jobs + waiting
        self.held = 0
        self.running = 0
        self._seconds = 1.0  # of a job, a moving mean

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

    @contextlib.asynccontextmanager
    async def turn(self, jobs: int = 1) -> AsyncIterator[None]:
        """For one job, or for so many of one request at once."""
        async with self._turns:
            began = asyncio.get_running_loop().time()
            self.running += jobs
            try:
                yield
            finally:
                self.running -= jobs
                each = (asyncio.get_running_loop().time() - began) / jobs
                self._seconds += 0.2 * (each - self._seconds)

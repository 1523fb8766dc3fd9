"""`ditto.client.flight` for an event loop: the same order, the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from ditto.api.threads import ended, whole
from ditto.client.flight import Ending, Landed, Window

J = TypeVar("J")
T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]


async def flown(
    jobs: Sequence[J], ask: Callable[[J, Ending], T], in_flight: int, run: Run[T]
) -> AsyncGenerator[Landed[J, T], None]:
    """The answer of each job, in order: `in_flight` at once are given to `run` (`ditto.serve.turns.Turns.run`), which
    has `ask` called in a thread when it is the job's turn. However it ends, what is under way is told to end then, and
    its end is awaited."""
    window: Window[J, T] = Window(jobs, in_flight)
    flying: dict[asyncio.Future[T], int] = {}

    def begin() -> None:
        for at, job in window.begin():
            flying[asyncio.ensure_future(_asked(ask, job, run))] = at

    try:
        begin()
        while not window.over:
            while window.ready:
                found = window.give()
                begin()
                yield found
            if flying:
                done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    window.ended(flying.pop(task), task)
            begin()
    finally:
        for task in flying:
            task.cancel()
        for task in flying:
            await ended(task)


async def _asked(ask: Callable[[J, Ending], T], job: J, run: Run[T]) -> T:
    ending = Ending()
    return await run(lambda: whole(lambda: ask(job, ending), ending.end))

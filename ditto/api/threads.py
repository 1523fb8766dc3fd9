"""Calls that wait, in threads, for an event loop that must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def whole(call: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """A call in a thread. Who is cancelled meanwhile calls `stop` and waits for the call's end."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await ended(task)
        raise


async def ended(task: asyncio.Future[T]) -> None:
    """Wait for the end of what nobody wants the result of, or the error."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # taken, or the loop would print it

"""Who asked and hung up: what is done for them ends, after the job (of a generated text: the token) under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ditto.api.threads import ended

T = TypeVar("T")


class Gone(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client hangs up. Only when the body has been read. Raises Gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await ended(task)
            raise Gone
        return task.result()
    except asyncio.CancelledError:  # the server ends
        task.cancel()
        await ended(task)
        raise
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """Server-sent events, each as it comes. `items` is closed whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, items: AsyncIterator[str]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send))

    @staticmethod
    def written(item: str) -> bytes:
        return f"data: {item}\n\n".encode()

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for item in self._items:
                await send({"type": "http.response.body", "body": self.written(item), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await closed(self._items)


class Lines(Events):
    """One JSON document a line."""

    media_type = "application/jsonl"

    @staticmethod
    def written(item: str) -> bytes:
        return f"{item}\n".encode()


async def closed(items: AsyncIterator[Any]) -> None:
    """End an asynchronous generator that may not have begun."""
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def told(
    work: Callable[[Callable[[T], None]], Awaitable[None]], stop: Callable[[], None] = lambda: None
) -> AsyncGenerator[T, None]:
    """What `work` tells, from any thread: in order, and however slowly it is read. Raises what `work` ends with. When
    nobody reads any more, `stop` is called, `work` is cancelled, and its end awaited."""
    ready: asyncio.Queue[T | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(item: T) -> None:
        loop.call_soon_threadsafe(ready.put_nowait, item)

    task = asyncio.ensure_future(work(tell))
    task.add_done_callback(lambda _: ready.put_nowait(None))
    try:
        while (item := await ready.get()) is not None:
            yield item
        await task
    finally:
        stop()
        task.cancel()
        await ended(task)


def flowing(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The same items, taken as they come: who reads them slowly does not hold up what makes them."""

    async def fill(tell: Callable[[T], None]) -> None:
        try:
            async for item in items:
                tell(item)
        finally:
            await closed(items)

    return told(fill)

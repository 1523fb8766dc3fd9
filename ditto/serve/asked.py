"""How a route that asks a model is made of a function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ditto.serve.body import read
from ditto.serve.leaving import unless_gone
from ditto.serve.state import State

Handler = Callable[[State, dict[str, Any]], Coroutine[Any, Any, Response]]


def question(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint: reads the document, and cancels the handler when the client hangs up."""

    async def endpoint(request: Request) -> Response:
        document = await read(request)
        return await unless_gone(request.receive, handler(request.app.state.ditto, document))

    return endpoint

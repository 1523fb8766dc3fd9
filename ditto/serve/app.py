"""The routes of all modules as one application, behind one guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ditto.errors import DittoError
from ditto.serve import health, openai, page, tei
from ditto.serve.errors import Refused, failure
from ditto.serve.guard import Guard, Neighbour
from ditto.serve.state import State

ROUTES = (*page.ROUTES, *openai.ROUTES, *tei.ROUTES, *health.ROUTES)


def application(
    state: State, *, key: str | None = None, hosts: Collection[str] = (), neighbour: Neighbour = lambda scope: True,
    more: Sequence[BaseRoute] = (),
) -> Starlette:  # fmt: skip
    """`request.app.state.ditto` is `state`, which is closed when the application ends. `more` routes besides ROUTES.
    The rest as `Guard` has it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await state.close()

    paths = [route.path for route in (*ROUTES, *more) if isinstance(route, Route)]
    guard = Middleware(Guard, metrics=state.metrics, routes=paths, key=key, hosts=hosts, neighbour=neighbour)
    app = Starlette(
        routes=[*ROUTES, *more], middleware=[guard], lifespan=lifespan,
        exception_handlers={DittoError: _failed, HTTPException: _refused},
    )  # fmt: skip
    app.router.redirect_slashes = False
    app.state.ditto = state
    return app


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, DittoError)
    return failure(request.url.path, error)


async def _refused(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)
    answer = failure(request.url.path, Refused(error.detail, error.status_code))
    answer.headers.update(error.headers or {})
    return answer

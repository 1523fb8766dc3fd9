"""The routes of all modules as one application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from ditto.serve import health, page
from ditto.serve.state import State

ROUTES = (*page.ROUTES, *health.ROUTES)


def application(state: State) -> Starlette:
    """`request.app.state.ditto` is `state`, which is closed when the application ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await state.close()

    app = Starlette(routes=list(ROUTES), lifespan=lifespan)
    app.state.ditto = state
    return app

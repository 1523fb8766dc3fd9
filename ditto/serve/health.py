"""`/health`: are the servers there; `/metrics`: what was asked and what it cost."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ditto.errors import DittoError
from ditto.serve.state import State

EVERY = 1.0  # seconds: the coordinator is not asked more often


async def health(request: Request) -> Response:
    """200 where all four servers answer, else 503. The only answer without a key: no name, no address."""
    state: State = request.app.state.ditto
    known: tuple[float, dict[str, bool]] | None = getattr(request.app.state, "servers", None)
    if known is None or time.monotonic() - known[0] > EVERY:
        known = request.app.state.servers = time.monotonic(), await _servers(state)
    servers = known[1]
    fine = all(servers.values())
    return JSONResponse({"status": "ok" if fine else "unavailable", "servers": servers}, 200 if fine else 503)


async def _servers(state: State) -> dict[str, bool]:
    """Which of them answer, as the coordinator says."""
    try:
        status = await state.status()
    except DittoError:
        return {"coordinator": False}
    return {"coordinator": True} | {process["role"]: process["serving"] for process in status["processes"]}


async def metrics(request: Request) -> Response:
    return Response(request.app.state.ditto.metrics.text(), media_type=CONTENT_TYPE_LATEST)


ROUTES: list[BaseRoute] = [Route("/health", health), Route("/metrics", metrics)]

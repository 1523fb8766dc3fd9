"""`/health`: are the servers there; `/metrics`: what was asked and what it cost."""

from __future__ import annotations

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
    servers: dict[str, bool] = {}
    try:
        status = await state.status()
        servers = {"coordinator": True} | {process["role"]: process["serving"] for process in status["processes"]}
    except DittoError:
        servers = {"coordinator": False}
    fine = all(servers.values())
    return JSONResponse({"status": "ok" if fine else "unavailable", "servers": servers}, 200 if fine else 503)


async def metrics(request: Request) -> Response:
    return Response(request.app.state.ditto.metrics.text(), media_type=CONTENT_TYPE_LATEST)


ROUTES: list[BaseRoute] = [Route("/health", health), Route("/metrics", metrics)]

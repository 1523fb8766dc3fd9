"""How `ditto serve` answers this user's commands: lines of JSON by its socket, as they come."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ditto.errors import DittoError, UnknownModel
from ditto.serve.body import read
from ditto.serve.leaving import Lines, told
from ditto.serve.state import State

Say = Callable[[dict[str, Any]], None]


async def asked_by_socket(request: Request) -> dict[str, Any]:
    """The document of a request, which came by the socket: only this user's commands reach that."""
    if request.scope.get("state", {}).get("unix") is not True:
        raise UnknownModel("Not Found")
    return await read(request)


def said_as_it_comes(state: State, work: Callable[[Say], Awaitable[None]]) -> Response:
    """What `work` says, from any thread, then an end or an error, whoever reads it how fast. It is cancelled when
    nobody does."""

    async def run(tell: Callable[[str], None]) -> None:
        def say(line: dict[str, Any]) -> None:
            tell(json.dumps(line))

        try:
            async with state.turns.place():
                await work(say)
            say({"end": True})
        except DittoError as error:
            say({"error": {"code": error.code, "message": str(error), "peer": error.peer}})

    return Lines(told(run))

"""What `ditto serve` does for `ditto generate`: the same as `ditto.cli.generate`, with the connection that it has.

It says in lines of JSON what comes: notes, the prompt's layers, one prompt's text, then the document of `--json`. The
command has it end after the token under way by a second request.
"""

from threading import Event
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ditto.api.threads import whole
from ditto.cli.asked import served
from ditto.cli.generate_served import PATH, STOP
from ditto.cli.generating import Asked, Wish, Words, warning_of
from ditto.cli.run import network_of
from ditto.cli.serving import Say, asked_by_socket, said_as_it_comes
from ditto.serve.state import State

_under_way: dict[str, Event] = {}  # by the name that the command gave, which it alone knows


async def _endpoint(request: Request) -> Response:
    document = await asked_by_socket(request)
    state: State = request.app.state.ditto
    return said_as_it_comes(state, lambda say: _generate(state, document, say))


async def _stop(request: Request) -> Response:
    """A text that has ended meanwhile has ended."""
    document = await asked_by_socket(request)
    if (stop := _under_way.get(str(document.get("name")))) is not None:
        stop.set()
    return JSONResponse({})


async def _generate(state: State, document: dict[str, Any], say: Say) -> None:
    stop = _under_way[document["name"]] = Event()
    say({"begun": True})
    try:
        await _until_stopped(state, document["model"], Wish(**document["wish"]), document["streams"], stop, say)
    finally:
        del _under_way[document["name"]]


async def _until_stopped(state: State, name: str, wish: Wish, streams: bool, stop: Event, say: Say) -> None:
    """As `ditto.cli.generate.generate` does, with the server's connection."""
    client, sampler = state.cluster._client, wish.sampler()
    found = await whole(lambda: served(client, name, lambda text: say({"note": text})))
    public = (await state.model(name))._public
    asked = await whole(lambda: Asked.of(found.description, public.tokenizer, wish))
    words = Words(asked.tokenizer) if streams else None
    say({"job": True})

    def take(fresh: list[int | None]) -> bool:
        if words is not None:
            say({"text": words.push(fresh[0])})
        return not stop.is_set()

    # who hangs up has it end after the token under way, too
    result = await state.job(lambda: asked.run(client, sampler, take, lambda event: say({"event": event})), stop.set)
    state.metrics.job(name, result.report, len(wish.prompts))
    if words is not None:
        say({"text": words.finish()})
    summary = asked.summary(result, network_of(client._config), stop.is_set())
    say({"summary": summary, "warning": warning_of(summary)})


ROUTES: list[BaseRoute] = [Route(PATH, _endpoint, methods=["POST"]), Route(STOP, _stop, methods=["POST"])]

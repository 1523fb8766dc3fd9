"""The page at `/`: static files, the models, and one question as a stream of server-sent events.

The files need nothing from elsewhere, and their policy forbids it. They are the same for everybody; `/page/models` and
`/page/ask`, which they ask, are behind the guard like all other routes (`ditto.serve.guard`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import ditto
from ditto.api import jobs
from ditto.client.generation import generate
from ditto.client.sampling import Sampler
from ditto.client.sent import Sent
from ditto.errors import DittoError, Interrupted, UsageError
from ditto.models import Plan
from ditto.serve import body, shown
from ditto.serve.errors import status_of
from ditto.serve.leaving import Events, told

if TYPE_CHECKING:
    from ditto.api.model import Model
    from ditto.models.tokenizer import Batch, Text
    from ditto.serve.state import State

# Besides what every answer has (`ditto.serve.guard`)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
Put = Callable[[str, dict[str, Any]], None]  # an event's kind and what it says


def _static(name: str) -> Callable[[Request], Response]:
    def give(_: Request) -> Response:
        content = files("ditto.serve").joinpath("static", name).read_bytes()
        return Response(content, media_type=FILES[name], headers=HEADERS)

    return give


async def models(request: Request) -> Response:
    """What may be asked, as the models' public descriptions say."""
    state: State = request.app.state.ditto
    try:
        found = await state.models()
    except DittoError as error:
        return JSONResponse({"failed": shown.failure(error)}, status_of(error))
    listed = [
        {
            "name": info.name, "owner": info.owner, "kind": info.kind, "labels": info.labels, "preset": info.preset,
            "architecture": info.architecture, "max_length": info.max_length,
        }
        for info in found
    ]  # fmt: skip
    return JSONResponse({"models": listed, "version": ditto.__version__})


# One question -------------------------------------------------------------------------------------


class Question(body.Fields):
    """`second`: another text, to be compared with the first by a model that gives vectors, else the second segment of
    a pair; empty where there is none. `tokens`: to be generated at most."""

    model: str
    text: str
    second: str = ""
    tokens: Annotated[int, Field(ge=1, le=512)] = 24
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0

    def texts(self, kind: str) -> list[Text]:
        if not self.second:
            return [self.text]
        return [self.text, self.second] if kind == "vector" else [(self.text, self.second)]


async def ask(request: Request) -> Response:
    """The events of one question, each a JSON object whose `event` is `waiting` (other questions come first),
    `queued`, `accepted`, `layer`, `token`, `answer`, `cost`, `seen`, or `failed`. Whoever closes the stream ends the
    job."""
    state: State = request.app.state.ditto
    question = body.fields(Question, await body.read(request))
    return Events(_events(lambda put: _answer(state, question, put)))


def _events(work: Callable[[Put], Coroutine[Any, Any, None]]) -> AsyncIterator[str]:
    """What `work` puts, which it may do from any thread. When nobody takes it any more, `put` raises Interrupted."""
    gone = threading.Event()

    def begin(tell: Callable[[str], None]) -> Coroutine[Any, Any, None]:
        def put(kind: str, said: dict[str, Any]) -> None:
            if gone.is_set():
                raise Interrupted()
            tell(json.dumps({"event": kind} | said, separators=(",", ":")))

        return work(put)

    return told(begin, gone.set)  # a job under way ends with its next event


async def _answer(state: State, question: Question, put: Put) -> None:
    try:
        model = await state.model(question.model)
        texts = question.texts(model.kind)
        work: Callable[[], None]
        if model.kind == "text":
            work = lambda: _written(state, model, question, put)  # noqa: E731
        else:
            [batch] = await state.encoded(model, texts)
            work = lambda: _answered(state, model, texts, batch, put)  # noqa: E731
        async with state.turns.place():
            if (ahead := state.turns.ahead) > 0:
                put("waiting", {"ahead": ahead})
            await state.job(work)
    except Interrupted:
        pass
    except DittoError as error:
        put("failed", shown.failure(error))


def _follow(put: Put) -> Callable[[dict[str, Any]], None]:
    kept = {"accepted": ("job", "layers"), "queued": ("position",), "layer": ("layer", "name", "phase")}

    def follow(event: dict[str, Any]) -> None:
        put(event["event"], {key: event[key] for key in kept.get(event["event"], ())})

    return follow


def _answered(state: State, model: Model, texts: list[Text], batch: Batch, put: Put) -> None:
    """In the job's thread."""
    sent, public = Sent(), model._public
    tables = public.tables()
    values, report = jobs.ask(model._client, model.description, batch, tables, True, _follow(put), None, sent)
    state.count(model, report, len(texts))
    _done(put, report, sent, shown.answer(model, public.tokenizer, texts, values))


def _written(state: State, model: Model, question: Question, put: Put) -> None:
    """In the job's thread: a text is continued."""
    sent, tokenizer = Sent(), model._public.tokenizer
    if question.tokens > model.max_length:
        raise UsageError(f"{question.tokens} new tokens: this model takes {model.max_length} in all")
    prompt = tokenizer.encode_prompts([question.text], model.max_length - question.tokens + 1)
    stream, end, text = tokenizer.stream(), tokenizer.end_of_text, list[str]()

    def take(fresh: list[int | None]) -> bool:
        if (token := fresh[0]) is not None and token != end:
            text.append(stream.push(token))
            put("token", {"text": text[-1]})
        return True

    plan = Plan(*prompt.shape, tokens=question.tokens, guard=True)
    sampler = Sampler(float(question.temperature), 0, 1.0, None)
    done = generate(model._client, model.description, prompt, plan, sampler, end, take, _follow(put), sent)
    state.count(model, done.report, 1)
    said = {"kind": "text", "text": "".join([*text, stream.finish()]), "tokens_per_second": done.tokens_per_second}
    _done(put, done.report, sent, said)


def _done(put: Put, report: dict[str, Any], sent: Sent, answer: dict[str, Any]) -> None:
    put("answer", answer | {"in_range": report["in_range"], "out_of_range_layers": report["out_of_range_layers"]})
    put("cost", shown.cost(report))
    put("seen", shown.seen(sent))


ROUTES: list[BaseRoute] = [
    Route("/", _static("page.html")),
    Route("/page/page.css", _static("page.css")),
    Route("/page/page.js", _static("page.js")),
    Route("/page/models", models),
    Route("/page/ask", ask, methods=["POST"]),
]

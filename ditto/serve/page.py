"""The page at `/`: static files, the models, and one question as a stream of server-sent events.

The files need nothing from elsewhere, and their policy forbids it. What asks is `POST /page/ask`, as JSON: another
origin cannot send that without this application's leave, which it does not give (`ditto.serve.app`).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

import ditto
from ditto.api import jobs
from ditto.client.generation import generate
from ditto.client.sampling import Sampler
from ditto.client.sent import Sent
from ditto.errors import DittoError, Interrupted, UsageError
from ditto.models import Plan
from ditto.serve import shown

if TYPE_CHECKING:
    from ditto.api.model import Model
    from ditto.models.tokenizer import Batch, Text
    from ditto.serve.state import State

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
MOST = 512  # tokens that one question may have generated
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
        return JSONResponse({"failed": shown.failure(error)}, 503, headers=HEADERS)
    listed = [
        {
            "name": info.name, "owner": info.owner, "kind": info.kind, "labels": info.labels, "preset": info.preset,
            "architecture": info.architecture, "max_length": info.max_length,
        }
        for info in found
    ]  # fmt: skip
    return JSONResponse({"models": listed, "version": ditto.__version__}, headers=HEADERS)


# One question -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """`second`: another text, to be compared with the first by a model that gives vectors, else the second segment of
    a pair; empty where there is none."""

    model: str
    text: str
    second: str = ""
    tokens: int = 24  # to be generated
    temperature: float = 0.0

    @classmethod
    def of(cls, document: Any) -> Question:
        """Raises UsageError."""
        if not isinstance(document, dict) or not document.keys() <= cls.__dataclass_fields__.keys():
            raise UsageError(f"a question is an object of {', '.join(cls.__dataclass_fields__)}")
        fields = {"second": "", "tokens": 24, "temperature": 0.0} | document
        for name in ("model", "text", "second"):
            if not isinstance(fields.get(name), str):
                raise UsageError(f"{name}: a string expected")
        tokens, temperature = fields["tokens"], fields["temperature"]
        if type(tokens) is not int or not 1 <= tokens <= MOST:
            raise UsageError(f"tokens: a whole number from 1 to {MOST} expected")
        if type(temperature) not in (int, float) or not 0 <= temperature <= 10:
            raise UsageError("temperature: a number from 0 to 10 expected")
        return cls(**fields)

    def texts(self, kind: str) -> list[Text]:
        if not self.second:
            return [self.text]
        return [self.text, self.second] if kind == "vector" else [(self.text, self.second)]


async def ask(request: Request) -> Response:
    """The events of one question: `accepted`, `queued`, `layer`, `token`, `answer`, `cost`, `seen`, or `failed`.
    Whoever closes the stream ends the job."""
    state: State = request.app.state.ditto
    try:
        question = Question.of(await request.json())
    except (UsageError, ValueError, RecursionError) as error:
        wrong = error if isinstance(error, UsageError) else UsageError("no JSON")
        return JSONResponse({"failed": shown.failure(wrong)}, 400, headers=HEADERS)
    stream = _events(lambda put: _answer(state, question, put))
    return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS | {"X-Accel-Buffering": "no"})


_RUNNING: set[asyncio.Task[None]] = set()  # held, so that nobody collects them


async def _events(work: Callable[[Put], Any]) -> AsyncIterator[bytes]:
    """What `work` puts, which it may do from any thread. When nobody takes it any more, `put` raises Interrupted."""
    loop, gone = asyncio.get_running_loop(), threading.Event()
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(kind: str, said: dict[str, Any]) -> None:
        if gone.is_set():
            raise Interrupted()
        text = f"data: {json.dumps({'event': kind} | said, separators=(',', ':'))}\n\n"
        loop.call_soon_threadsafe(waiting.put_nowait, text.encode())

    task = asyncio.create_task(work(put))
    _RUNNING.add(task)
    task.add_done_callback(_RUNNING.discard)
    task.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while (event := await waiting.get()) is not None:
            yield event
    finally:
        gone.set()
        task.cancel()  # if it waits for its turn; a job under way ends with its next event


async def _answer(state: State, question: Question, put: Put) -> None:
    try:
        model = await state.model(question.model)
        if model.kind == "text":
            async with state.turns.place():
                await state.job(lambda: _written(state, model, question, put))
            return
        texts = question.texts(model.kind)
        [batch] = await state.encoded(model, texts)
        async with state.turns.place():
            await state.job(lambda: _answered(state, model, texts, batch, put))
    except Interrupted:
        return
    except DittoError as error:
        put("failed", shown.failure(error))
    except Exception as error:
        put("failed", shown.failure(DittoError(f"unexpected: {type(error).__name__}")))
        raise


def _follow(put: Put) -> Callable[[dict[str, Any]], None]:
    kept = {"accepted": ("job", "layers"), "queued": ("position",), "layer": ("layer", "name", "phase")}

    def follow(event: dict[str, Any]) -> None:
        put(event["event"], {key: event[key] for key in kept.get(event["event"], ())})

    return follow


def _answered(state: State, model: Model, texts: list[Text], batch: Batch, put: Put) -> None:
    """In the job's thread."""
    sent, public = Sent(), model._public
    values, report = jobs.ask(model._client, model.description, batch, public.tables(), True, _follow(put), None, sent)
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

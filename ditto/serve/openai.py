"""OpenAI's API: `/v1/models`, `/v1/embeddings`, `/v1/completions`. What is not there is refused, never ignored."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ditto.api.threads import whole
from ditto.errors import DittoError, UnknownModel
from ditto.serve import body
from ditto.serve.asked import question
from ditto.serve.errors import Refused, openai_body
from ditto.serve.leaving import Events, closed, flowing
from ditto.serve.state import State, Totals
from ditto.serve.writing import Writing

if TYPE_CHECKING:
    from ditto.api.answers import ModelInfo
    from ditto.api.model import Model

PROMPTS = 16  # of one request
STOPS = 4
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store"}
NEUTRAL = {
    "best_of": 1, "echo": False, "frequency_penalty": 0, "logit_bias": {}, "n": 1, "presence_penalty": 0, "suffix": "",
}  # fmt: skip


async def models(request: Request) -> Response:
    state: State = request.app.state.ditto
    return JSONResponse({"object": "list", "data": [_described(state, info) for info in await state.models()]})


async def one_model(request: Request) -> Response:
    state, name = request.app.state.ditto, request.path_params["name"]
    for info in await state.models():
        if info.name == name:
            return JSONResponse(_described(state, info))
    raise UnknownModel("no shared model of this name that may be asked")


def _described(state: State, info: ModelInfo) -> dict[str, Any]:
    more = {"kind": info.kind, "architecture": info.architecture, "preset": info.preset, "max_length": info.max_length}
    described = {"id": info.name, "object": "model", "created": int(state.started), "owned_by": info.owner}
    return described | {"ditto": more | {"labels": list(info.labels)}}


class Embedding(body.Fields):
    model: str
    input: list[str]
    encoding_format: Literal["float", "base64"] = "float"


async def embeddings(state: State, document: dict[str, Any]) -> Response:
    """The vectors of `ditto.Model.encode`."""
    if document.get("dimensions") is not None:
        raise Refused("dimensions: a model's vectors have one size", code="unsupported_parameter", param="dimensions")
    if "input" in document:
        document["input"] = body.texts_of(document["input"], "input")
    asked = body.fields(Embedding, document, ignored=IGNORED)
    model = await state.fitting(asked.model, lambda info: info.kind == "vector", "vectors")
    totals, rows = Totals(), list[Any]()
    async for answered in state.ask(model, await state.encoded(model, asked.input)):
        totals.add(answered)
        rows += answered.values
    data = [
        {"object": "embedding", "index": i, "embedding": _written(row, asked.encoding_format)}
        for i, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": totals.tokens, "total_tokens": totals.tokens}
    answer = {"object": "list", "data": data, "model": model.name, "usage": usage, "ditto": totals.document()}
    return JSONResponse(answer, headers=totals.headers())


def _written(row: Any, form: str) -> Any:
    vector = np.asarray(row, dtype="<f4")
    return base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()


class StreamOptions(body.Fields):
    include_usage: bool = False
    include_obfuscation: bool = False  # OpenAI's padding against who reads along; here there is nobody between


Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class Completion(body.Fields):
    model: str
    prompt: list[str]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: int | None = None
    stop: Annotated[list[Stop], Field(max_length=STOPS, default_factory=list)]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


async def completions(state: State, document: dict[str, Any]) -> Response:
    """The text of `ditto.Model.generate`."""
    if "prompt" in document:
        document["prompt"] = body.counted(body.texts_of(document["prompt"], "prompt"), "prompt", PROMPTS)
    if isinstance(document.get("stop"), str):
        document["stop"] = [document["stop"]]
    if document.get("stream_options") is not None and document.get("stream") is not True:
        raise Refused("stream_options: only with stream", code="invalid_value", param="stream_options")
    asked = body.fields(Completion, document, neutral=NEUTRAL, ignored=IGNORED)
    model = await state.fitting(asked.model, lambda info: info.kind == "text", "completions")
    work = _Completion(state, model, asked)
    await whole(work.begin)
    pieces = flowing(work.pieces())
    if not asked.stream:
        try:
            async for _ in pieces:
                pass
        finally:
            await closed(pieces)
        return JSONResponse(work.document(), headers=work.headers())
    try:  # what is wrong before the first token is said by the status
        first = await anext(pieces)
    except BaseException:
        await closed(pieces)
        raise
    return Events(_events(work, first, pieces))


class _Completion:
    """All prompts of one request, one after the other."""

    def __init__(self, state: State, model: Model, asked: Completion) -> None:
        self._state, self._model, self._asked = state, model, asked
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._writings: list[Writing] = []
        self._texts: list[str] = []
        self._prompt_tokens = 0

    def begin(self) -> None:
        """Check all prompts; no job runs yet. Raises EmptyText, TextTooLong, UsageError."""
        asked, tokenizer = self._asked, self._model._public.tokenizer
        if asked.max_tokens > self._model.max_length:
            raise Refused(f"max_tokens: {self._model.max_length} at most", code="invalid_value", param="max_tokens")
        for prompt in asked.prompt:
            begin = partial(
                self._model.generate, prompt, max_new_tokens=asked.max_tokens, temperature=asked.temperature,
                top_p=asked.top_p, top_k=asked.top_k, seed=asked.seed,
            )  # fmt: skip
            self._writings.append(Writing(self._state, self._model, begin, asked.max_tokens, asked.stop))
        self._prompt_tokens = sum(tokenizer.encode_prompts(asked.prompt, self._model.max_length).lengths)
        self._texts = [""] * len(self._writings)

    async def pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """Of each prompt its number and a text; at its end, why it ended."""
        async with self._state.turns.place():
            for i, writing in enumerate(self._writings):
                pieces = writing.pieces()
                try:
                    async for text in pieces:
                        self._texts[i] += text
                        yield i, text, None
                finally:
                    await closed(pieces)
                yield i, "", writing.reason

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model.name}

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}

    def usage(self) -> dict[str, int]:
        new = sum(writing.tokens for writing in self._writings)
        return {
            "prompt_tokens": self._prompt_tokens, "completion_tokens": new, "total_tokens": self._prompt_tokens + new,
        }  # fmt: skip

    def in_range(self) -> bool:
        return all(writing.in_range is not False for writing in self._writings)

    def headers(self) -> dict[str, str]:
        return {"x-ditto-in-range": str(self.in_range()).lower(), "x-ditto-stock": str(self._stock()).lower()}

    def _stock(self) -> bool:
        return bool(self._writings) and all(writing.stock for writing in self._writings)

    def document(self) -> dict[str, Any]:
        choices = [self._choice(i, text, self._writings[i].reason) for i, text in enumerate(self._texts)]
        return self._head() | {
            "choices": choices,
            "usage": self.usage(),
            "ditto": {"in_range": self.in_range(), "stock": self._stock()},
        }

    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        found = self._head() | {"choices": [self._choice(index, text, reason)]}
        if self._asked.stream_options.include_usage:
            found["usage"] = None
        if reason is not None:
            found["ditto"] = {"in_range": self._writings[index].in_range}
        return found

    def last(self) -> dict[str, Any] | None:
        """The chunk after all others, where it is wanted."""
        if not self._asked.stream_options.include_usage:
            return None
        return self._head() | {"choices": [], "usage": self.usage()}


async def _events(
    work: _Completion, first: tuple[int, str, str | None], pieces: AsyncIterator[tuple[int, str, str | None]]
) -> AsyncIterator[str]:
    try:
        yield json.dumps(work.chunk(*first))
        async for piece in pieces:
            yield json.dumps(work.chunk(*piece))
        if (last := work.last()) is not None:
            yield json.dumps(last)
        yield "[DONE]"
    except DittoError as error:
        yield json.dumps(openai_body(error))
    finally:
        await closed(pieces)


ROUTES: list[BaseRoute] = [
    Route("/v1/models", models),
    Route("/v1/models/{name}", one_model),
    Route("/v1/embeddings", question(embeddings), methods=["POST"]),
    Route("/v1/completions", question(completions), methods=["POST"]),
]

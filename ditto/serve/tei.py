"""The API of Hugging Face's text-embeddings-inference: `/embed`, `/predict`, `/rerank`, `/info`.

Where there are several models, a request names one as `model`; else the only one that fits is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import ditto
from ditto.api.reading import probabilities
from ditto.serve import body
from ditto.serve.asked import question
from ditto.serve.errors import Refused
from ditto.serve.state import BATCH, State, Totals

if TYPE_CHECKING:
    from ditto.api.answers import ModelInfo, Text
    from ditto.api.model import Model
    from ditto.models import Dimensions

# `parameters` is what huggingface_hub's client wraps its own in, and may be empty; Ditto cuts at the right
NEUTRAL: dict[str, Any] = {"parameters": {}, "truncation_direction": "right"}


class Embed(body.Fields):
    model: str | None = None
    inputs: list[str]
    normalize: bool = True
    truncate: bool = False


class Predict(body.Fields):
    model: str | None = None
    inputs: Any
    raw_scores: bool = False
    truncate: bool = False


class Rerank(body.Fields):
    model: str | None = None
    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False


async def embed(state: State, document: dict[str, Any]) -> Response:
    """Of length 1, unless `normalize` is false: then as the model gives them."""
    if "inputs" in document:
        document["inputs"] = body.texts_of(document["inputs"], "inputs")
    asked = body.fields(Embed, document, neutral=NEUTRAL)
    model = await state.fitting(asked.model, _gives_vectors, "vectors")
    rows, totals = await _answers(state, model, asked.inputs, asked.truncate)
    vectors = np.asarray(rows, dtype=np.float32)
    if asked.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return JSONResponse(vectors.tolist(), headers=totals.headers())


async def predict(state: State, document: dict[str, Any]) -> Response:
    """Labels and how likely each is, the likeliest first: of one text or pair a list, of a batch a list of lists."""
    asked = body.fields(Predict, document, neutral=NEUTRAL)
    texts, several = _sequences(asked.inputs)
    model = await state.fitting(asked.model, lambda info: info.kind == "labels", "labels")
    rows, totals = await _answers(state, model, texts, asked.truncate)
    found = [_predicted(row, model.description.dimensions, asked.raw_scores) for row in rows]
    return JSONResponse(found if several else found[0], headers=totals.headers())


async def rerank(state: State, document: dict[str, Any]) -> Response:
    """How well each text fits the query, the best first, by a model with one output."""
    asked = body.fields(Rerank, document, neutral=NEUTRAL)
    body.counted(asked.texts, "texts")
    model = await state.fitting(asked.model, _gives_scores, "ranks")
    rows, totals = await _answers(state, model, [(asked.query, text) for text in asked.texts], asked.truncate)
    scores = [row[0] if asked.raw_scores else _sigmoid(row[0]) for row in rows]
    ranks = [
        {"index": i, "score": scores[i]} | ({"text": asked.texts[i]} if asked.return_text else {})
        for i in sorted(range(len(rows)), key=lambda i: -rows[i][0])
    ]
    return JSONResponse(ranks, headers=totals.headers())


async def info(request: Request) -> Response:
    """Of the model in `?model=`, or of the only one; with several, all of them as `models`."""
    state: State = request.app.state.ditto
    name, found = request.query_params.get("model"), await state.models()
    chosen = [info for info in found if name is None or info.name == name]
    if name is not None and not chosen:
        raise Refused("no shared model of this name that may be asked", 404, "model_not_found", "model")
    common = {
        "version": ditto.__version__, "max_concurrent_requests": state.turns.places,
        "max_client_batch_size": body.TEXTS, "max_batch_requests": BATCH,
    }  # fmt: skip
    if len(chosen) == 1:
        return JSONResponse(_informed(chosen[0]) | common)
    return JSONResponse(common | {"models": [_informed(info) for info in chosen]})


def _informed(info: ModelInfo) -> dict[str, Any]:
    """`model_type` as text-embeddings-inference writes it; of what it has no word for, Ditto's."""
    labels = {str(i): label for i, label in enumerate(info.labels)}
    named = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    kind = {"vector": "embedding", "labels": "reranker" if len(info.labels) == 1 else "classifier"}.get(info.kind)
    detail: dict[str, Any] = {} if kind == "embedding" else named
    return {
        "model_id": info.name, "model_sha": None, "model_dtype": "fixed-point shares", "owner": info.owner,
        "model_type": {kind or info.kind: detail}, "max_input_length": info.max_length,
    }  # fmt: skip


def _gives_vectors(info: ModelInfo | Model) -> bool:
    return info.kind == "vector"


def _gives_scores(info: ModelInfo | Model) -> bool:
    return info.kind == "labels" and len(info.labels) == 1


async def _answers(state: State, model: Model, texts: Sequence[Text], truncate: bool) -> tuple[list[Any], Totals]:
    totals, rows = Totals(), list[Any]()
    async for answered in state.ask(model, await state.encoded(model, texts, truncate=truncate)):
        totals.add(answered)
        rows += answered.values
    return rows, totals


def _sequences(inputs: Any) -> tuple[list[Text], bool]:
    """A text, a pair [a, b], or a batch [[a], [a, b], …]; and whether it is a batch. Raises Refused."""
    several = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
    given = inputs if several else [[inputs] if isinstance(inputs, str) else inputs]
    for parts in given:
        fine = isinstance(parts, list) and 1 <= len(parts) <= 2 and all(isinstance(part, str) for part in parts)
        if not fine:
            raise Refused(
                "inputs: a text, a pair [text, text], or a batch [[text], [text, text], …] expected",
                code="invalid_type", param="inputs",
            )  # fmt: skip
    body.counted(given, "inputs")
    return [parts[0] if len(parts) == 1 else (parts[0], parts[1]) for parts in given], several


def _predicted(row: list[float], d: Dimensions, raw: bool) -> list[dict[str, Any]]:
    """Softmax; a sigmoid of one output, and of each where several labels may be right; numbers as they are."""
    if raw or d.problem_type == "regression":
        scores = list(row)
    else:
        scores = [_sigmoid(row[0])] if len(d.labels) == 1 else probabilities(row, d)
    found = [{"label": label, "score": score} for label, score in zip(d.labels, scores, strict=True)]
    return sorted(found, key=lambda one: -float(one["score"]))


def _sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(value))))


ROUTES: list[BaseRoute] = [
    Route("/embed", question(embed), methods=["POST"]),
    Route("/predict", question(predict), methods=["POST"]),
    Route("/rerank", question(rerank), methods=["POST"]),
    Route("/info", info),
]

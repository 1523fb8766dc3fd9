"""`ditto serve` with the clients that people use, and with those that they would not let in.

On the cluster of `place`, the server in a thread. About 12 s of CPU here, and 8 s of the four servers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from place import CLOSE, CLOSE_VECTORS, PAIRS, PROMPT, TEXTS, Place
from typer.testing import CliRunner

import ditto
from ditto.cli import app as cli
from ditto.cli import generate_serving, infer_serving
from ditto.cli.generating import Writer
from ditto.errors import ClusterError, PeerAbsent
from ditto.serve import body, server
from ditto.serve import place as places
from ditto.serve.app import application
from ditto.serve.state import State

KEY = "correct-horse-battery"
JSON = {"content-type": "application/json"}


@dataclass
class Served:
    """A running server, its state, and its own client's cluster."""

    state: State
    said: dict[str, Any]
    home: Path

    @property
    def url(self) -> str:
        return str(self.said["address"])

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, document: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=document, timeout=60, **more)


@contextlib.contextmanager
def serving(state: State, home: Path, config: Path | None = None, **options: Any) -> Iterator[dict[str, Any]]:
    """In a thread of this process; what its note says."""
    found: list[dict[str, Any]] = []
    started = threading.Event()
    with server.listening("127.0.0.1", 0, home) as here:
        app = application(state, **options)

        def ready(said: dict[str, Any]) -> None:
            found.append(said)
            started.set()

        running = server.Server(app, here, home, str(config) if config else None, ready)
        thread = threading.Thread(target=running.until_signal)
        thread.start()
        try:
            assert started.wait(20)
            yield found[0]
        finally:
            running.should_exit = True
            thread.join(30)
        assert not thread.is_alive() and not (home / places.NOTE).exists()


@pytest.fixture(scope="module")
def served(place: Place, writer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a client of its own, whose home has no model: what it needs is fetched."""
    home = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(home))
        state = State(ditto.connect(place.root / "configs" / "client.yaml"), waiting=2)
    with serving(state, home) as said:
        yield Served(state, said, home)


def test_embeddings(served: Served, place: Place) -> None:
    """As `encode` gives them, in both forms; the official client asks for base64."""
    want = place.cluster.model("vectors").encode(TEXTS)
    answer = served.openai.embeddings.create(model="vectors", input=TEXTS)
    found = np.array([row.embedding for row in answer.data])
    assert np.abs(want - want.mean(0)).max() > 4 * CLOSE_VECTORS, "any text's answer would do"
    assert np.abs(found - want).max() < CLOSE_VECTORS and [row.index for row in answer.data] == list(range(5))
    assert answer.model == "vectors" and answer.usage.prompt_tokens == answer.usage.total_tokens == _tokens(place)
    assert answer.model_extra is not None and answer.model_extra["ditto"]["in_range"] is True
    assert answer.model_extra["ditto"]["rounds"] > 0 and len(answer.model_extra["ditto"]["jobs"]) == 1
    plain = served.post("/v1/embeddings", {"model": "vectors", "input": TEXTS[0]})
    assert np.abs(np.array(plain.json()["data"][0]["embedding"]) - want[0]).max() < CLOSE_VECTORS
    coded = served.post("/v1/embeddings", {"model": "vectors", "input": TEXTS[0], "encoding_format": "base64"})
    vector = np.frombuffer(base64.b64decode(coded.json()["data"][0]["embedding"]), "<f4")
    assert np.abs(vector - want[0]).max() < CLOSE_VECTORS and plain.headers["x-ditto-in-range"] == "true"
    assert plain.headers["x-ditto-stock"] == "false"


def _tokens(place: Place) -> int:
    model = place.cluster.model("vectors")
    return int(model._public.tokenizer.encode(TEXTS, 32).mask.sum())


def test_langchain(served: Served, place: Place) -> None:
    vectors = OpenAIEmbeddings(
        model="vectors", base_url=f"{served.url}/v1", api_key="none", check_embedding_ctx_length=False  # type: ignore[arg-type]
    )  # fmt: skip
    want = place.cluster.model("vectors").encode(TEXTS[:2])
    assert np.abs(np.array(vectors.embed_documents(TEXTS[:2])) - want).max() < CLOSE_VECTORS
    assert np.abs(np.array(vectors.embed_query(TEXTS[0])) - want[0]).max() < CLOSE_VECTORS


def test_completions(served: Served, place: Place, writer: str) -> None:
    """Greedy: the text of `generate`, whole and streamed."""
    going = place.cluster.model(writer).generate(PROMPT, max_new_tokens=4)
    list(going)
    ask: dict[str, Any] = {"model": writer, "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    answer = served.openai.completions.create(**ask)
    assert answer.choices[0].text == going.text and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 4 and answer.usage.prompt_tokens == 5
    chunks = list(served.openai.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == going.text
    assert sum(bool(choice.text) for chunk in chunks for choice in chunk.choices) > 1, "it came at once"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage == answer.usage and all(chunk.usage is None for chunk in chunks[:-1])
    lines = served.post("/v1/completions", ask | {"stream": True}).text.splitlines()
    assert lines[-2] == "data: [DONE]" and all(line.startswith("data: ") for line in lines if line)

    stop = going.text[2:]
    cut = served.openai.completions.create(**ask | {"max_tokens": 8}, stop=[stop, "never there"])
    assert cut.choices[0].text == going.text[: going.text.find(stop)] and cut.choices[0].finish_reason == "stop"
    several = served.openai.completions.create(**ask | {"prompt": [PROMPT, "a"]})
    assert [choice.index for choice in several.choices] == [0, 1] and several.choices[0].text == going.text


def test_sampled_completions_repeat(served: Served, place: Place, writer: str) -> None:
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 7}
    going = place.cluster.model(writer).generate(PROMPT, max_new_tokens=3, **settings)
    list(going)
    answer = served.openai.completions.create(model=writer, prompt=PROMPT, max_tokens=3, **settings)
    assert answer.choices[0].text == going.text


def test_asynchronous_clients(served: Served, writer: str) -> None:
    """Two at once; there is one job at a time, and each has its turn."""

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(model=writer, prompt=PROMPT, max_tokens=3, stream=True)
            answer = await client.embeddings.create(model="vectors", input="the cat")
            assert len(answer.data) == 1
            assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "length"

    asyncio.run(ask())


def test_models(served: Served, place: Place) -> None:
    found = {model.id: model for model in served.openai.models.list()}
    assert found.keys() >= {"vectors", "labels", "score", "writer"}
    labels = served.openai.models.retrieve("labels")
    assert labels == found["labels"] and labels.owned_by == place.cluster.models()[0].owner
    assert labels.model_extra is not None and labels.model_extra["ditto"]["labels"] == ["low", "middle", "high"]
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("other")


def test_predict(served: Served, place: Place) -> None:
    """As text-embeddings-inference answers: a list of one text or pair, lists of a batch; the likeliest first."""
    want = place.reference("labels", [TEXTS[0], PAIRS[0]])
    batch = served.post(
        "/predict", {"model": "labels", "inputs": [[TEXTS[0]], list(PAIRS[0])], "raw_scores": True}
    ).json()
    for rows, logits in zip(batch, want, strict=True):
        assert [row["score"] for row in rows] == pytest.approx(sorted(logits, reverse=True), abs=CLOSE)
        assert rows[0]["label"] == ("low", "middle", "high")[int(np.argmax(logits))]
    powers = np.exp(want[1])
    pair = served.post("/predict", {"model": "labels", "inputs": list(PAIRS[0])}).json()
    assert [row["score"] for row in pair] == pytest.approx(sorted(powers / powers.sum(), reverse=True), abs=CLOSE)
    one = served.post("/predict", {"model": "labels", "inputs": TEXTS[0]}).json()
    assert sum(row["score"] for row in one) == pytest.approx(1) and [row["label"] for row in one] == [
        row["label"] for row in batch[0]
    ]
    several = served.post("/predict", {"inputs": TEXTS[0]})
    assert several.status_code == 400 and "several models do" in several.json()["error"]


def test_rerank(served: Served, place: Place) -> None:
    """The only model with one output needs no name."""
    texts = ["a dog", "the cat", "sat sat sat"]
    want = place.reference("score", [("the cat", text) for text in texts])[:, 0]
    ask = {"query": "the cat", "texts": texts}
    raw = served.post("/rerank", ask | {"raw_scores": True, "return_text": True}).json()
    for row in raw:
        assert row["score"] == pytest.approx(want[row["index"]], abs=CLOSE) and row["text"] == texts[row["index"]]
    ranks = served.post("/rerank", ask).json()
    scores = [row["score"] for row in ranks]
    assert scores == sorted(scores, reverse=True) and "text" not in ranks[0]
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-want[ranks[0]["index"]])), abs=CLOSE)


def test_embed(served: Served, place: Place) -> None:
    want = place.cluster.model("vectors").encode(["the cat", "the cat " * 20][:1])
    found = np.array(served.post("/embed", {"inputs": "the cat"}).json())
    assert found.shape == (1, 16) and np.abs(found - want).max() < CLOSE_VECTORS
    long = served.post("/embed", {"inputs": ["the cat " * 20]})
    assert long.status_code == 400 and long.json()["error_type"] == "Validation" and "tokens" in long.json()["error"]
    assert len(served.post("/embed", {"inputs": ["the cat " * 20], "truncate": True, "normalize": False}).json()) == 1


def test_hubs_client(served: Served, place: Place) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=f"{served.url}/embed", token="none")
    found = client.feature_extraction("the cat", normalize=True, truncate=False)
    assert np.abs(found - place.cluster.model("vectors").encode("the cat")).max() < CLOSE_VECTORS


def test_info_health_metrics(served: Served) -> None:
    info = httpx.get(f"{served.url}/info?model=labels").json()
    assert info["model_id"] == "labels" and info["model_type"]["classifier"]["id2label"]["0"] == "low"
    assert info["max_input_length"] == 32 and info["version"] == ditto.__version__
    assert {row["model_id"] for row in httpx.get(f"{served.url}/info").json()["models"]} >= {"labels", "vectors"}
    health = httpx.get(f"{served.url}/health")
    assert health.status_code == 200 and health.json()["servers"] == dict.fromkeys(
        ("coordinator", "party0", "party1", "dealer"), True
    )
    served.post("/embed", {"inputs": "the cat"})
    text = httpx.get(f"{served.url}/metrics").text
    assert 'ditto_serve_requests_total{route="/embed",status="200"}' in text and "the cat" not in text
    assert 'ditto_serve_rounds_total{model="vectors"}' in text and 'route="/v1/models/{name}"' in text


def test_without_a_coordinator(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any) -> Any:
        raise PeerAbsent("coordinator does not answer", peer="coordinator")

    monkeypatch.setattr(served.state.cluster._client, "status", absent)
    monkeypatch.setattr(served.state.cluster._client, "shared", absent)
    time.sleep(1.1)  # what was known of health is old
    assert httpx.get(f"{served.url}/health").status_code == 503
    with pytest.raises(openai.InternalServerError) as caught:
        served.openai.embeddings.create(model="vectors", input="the cat")
    assert caught.value.status_code == 503 and caught.value.code == "peer_absent"


@pytest.mark.parametrize(
    "path, document, status, code",
    [
        ("/v1/embeddings", {"model": "vectors", "input": [1, 2, 3]}, 400, "invalid_type"),
        ("/v1/embeddings", {"model": "vectors", "input": [[1, 2], [3]]}, 400, "invalid_type"),
        ("/v1/embeddings", {"model": "vectors", "input": []}, 400, "invalid_value"),
        ("/v1/embeddings", {"model": "vectors", "input": [""]}, 400, "empty_text"),
        ("/v1/embeddings", {"model": "vectors", "input": "the cat " * 20}, 400, "context_length_exceeded"),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 8}, 400, "unsupported_parameter"),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "pooling": "max"}, 400, "unsupported_parameter"),
        ("/v1/embeddings", {"model": "vectors"}, 400, "missing_required_parameter"),
        ("/v1/embeddings", {"input": "a"}, 400, "missing_required_parameter"),
        ("/v1/embeddings", {"model": "labels", "input": "a"}, 400, "usage"),
        ("/v1/embeddings", {"model": "other", "input": "a"}, 404, "model_not_found"),
        ("/v1/embeddings", {"model": "../m", "input": "a"}, 400, "usage"),
        ("/v1/embeddings", {"model": "vectors", "input": "a\ud800"}, 400, "usage"),
        ("/v1/embeddings", ["a"], 400, "usage"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "n": 2}, 400, "unsupported_parameter"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "logit_bias": {"5": 1}}, 400, "unsupported_parameter"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "logprobs": 1}, 400, "unsupported_parameter"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "echo": True}, 400, "unsupported_parameter"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "presence_penalty": 0.1}, 400, "unsupported_parameter"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": "4"}, 400, "invalid_value"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": 0}, 400, "invalid_value"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": 49}, 400, "invalid_value"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "temperature": -1}, 400, "invalid_value"),
        ("/v1/completions", {"model": "writer", "prompt": [1, 2]}, 400, "invalid_type"),
        ("/v1/completions", {"model": "writer", "prompt": ["a"] * 17}, 400, "invalid_value"),
        ("/v1/completions", {"model": "writer", "prompt": "a" * 60}, 400, "context_length_exceeded"),
        ("/v1/completions", {"model": "writer", "prompt": "a", "stream_options": {}}, 400, "invalid_value"),
        ("/v1/completions", {"model": "labels", "prompt": "a"}, 400, "usage"),
        ("/v1/chat/completions", {"model": "writer", "messages": []}, 404, "usage"),
        ("/predict", {"model": "labels", "inputs": ["a", "b", "c"]}, 400, None),
        ("/predict", {"model": "labels", "inputs": [["a", "b", "c"]]}, 400, None),
        ("/predict", {"model": "labels", "inputs": [["a"], "b"]}, 400, None),
        ("/predict", {"model": "vectors", "inputs": "a"}, 400, None),
        ("/rerank", {"query": "a", "texts": []}, 400, None),
        ("/rerank", {"query": "a", "texts": ["b"], "truncation_direction": "left"}, 400, None),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 400, None),
    ],
)
def test_refused(served: Served, path: str, document: Any, status: int, code: str | None) -> None:
    """Before any job, in the words of the API that was asked."""
    jobs = served.state.metrics.text()
    found = served.post(path, None, content=json.dumps(document), headers=JSON)
    assert found.status_code == status, found.text
    if code is None:
        assert found.json()["error_type"] == "Validation"
    else:
        assert found.json()["error"]["code"] == code and found.json()["error"]["type"] == "invalid_request_error"
    assert [line for line in served.state.metrics.text().splitlines() if b"serve_jobs" in line] == [
        line for line in jobs.splitlines() if b"serve_jobs" in line
    ]


def test_what_no_answer_depends_on_is_ignored(served: Served) -> None:
    answer = served.post("/v1/embeddings", {"model": "vectors", "input": "a", "user": "me", "dimensions": None})
    assert answer.status_code == 200


def test_bodies_have_a_size(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    large = json.dumps({"model": "vectors", "input": "a" * body.LARGEST})
    assert served.post("/v1/embeddings", None, content=large, headers=JSON).status_code == 413
    pieces = (large[i : i + 65536].encode() for i in range(0, len(large), 65536))
    with contextlib.suppress(httpx.HTTPError):  # the connection may end before the last piece is sent
        assert served.post("/v1/embeddings", None, content=pieces, headers=JSON).status_code == 413
    many = served.post("/v1/embeddings", {"model": "vectors", "input": ["a"] * (body.TEXTS + 1)})
    assert many.status_code == 400 and many.json()["error"]["param"] == "input"
    for content, kind, status in (
        ("{", "application/json", 400),
        ("{}", "text/plain", 415),
        ("[" * 9999, "application/json", 400),
    ):
        found = served.post("/v1/embeddings", None, content=content, headers={"content-type": kind})
        assert found.status_code == status
    monkeypatch.setattr(body, "SLOWEST", 0.2)
    with _raw(served) as line:
        line.sendall(_head(served, "content-type: application/json", "content-length: 20") + b'{"model"')
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_heads_have_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD", 0.2)
    with _raw(served) as line:
        line.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: ")
        assert line.recv(100) == b""


@contextlib.contextmanager
def _raw(served: Served) -> Iterator[socket.socket]:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        yield line


def _head(served: Served, *headers: str, path: str = "/v1/embeddings") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"host: {served.url.removeprefix('http://')}", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8400"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8400"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://evil.example", "host": "evil.example"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_origins(served: Served, headers: dict[str, str], status: int) -> None:
    """A page in the same browser neither asks nor reads, by an address or by a name of its own that leads here."""
    for found in (
        httpx.get(f"{served.url}/v1/models", headers=headers),
        served.post("/v1/embeddings", {"model": "vectors", "input": ""}, headers=headers),
    ):
        assert found.status_code == (status if status != 200 or found.request.method == "GET" else 400)
        assert not [name for name in found.headers if name.startswith("access-control")]
        assert found.headers["x-content-type-options"] == "nosniff" and found.headers["cache-control"] == "no-store"


def test_its_own_page_asks(served: Served) -> None:
    found = served.post("/v1/embeddings", {"model": "vectors", "input": ""}, headers={"origin": served.url})
    assert found.json()["error"]["code"] == "empty_text"
    asked_first = httpx.options(f"{served.url}/v1/embeddings", headers={"origin": "http://evil.example"})
    assert asked_first.status_code == 403


def test_the_clients_key_error(served: Served, tmp_path: Path, place: Place) -> None:
    state = State(ditto.connect(place.root / "configs" / "client.yaml"))
    with serving(state, tmp_path, key=KEY) as said:
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=f"{said['address']}/v1", api_key="wrong", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        assert openai.OpenAI(base_url=f"{said['address']}/v1", api_key=KEY, max_retries=0).models.list().data
        transport = httpx.HTTPTransport(uds=said["socket"])
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            assert client.get("/v1/models").status_code == 200


def test_busy(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs, two requests that wait, and no more; the next is told when to come back."""
    going, ends = threading.Event(), threading.Event()
    ask = served.state.cluster._client.infer

    def slow(*args: Any) -> Any:
        going.set()
        assert ends.wait(30)
        return ask(*args)

    monkeypatch.setattr(served.state.cluster._client, "infer", slow)
    answers: list[int] = []
    document = {"model": "vectors", "input": "the cat"}
    threads = [
        threading.Thread(target=lambda: answers.append(served.post("/v1/embeddings", document).status_code))
        for _ in range(4)
    ]
    try:
        for thread in threads:
            thread.start()
        assert going.wait(20)
        _until(lambda: served.state.turns.held == 4)
        assert served.state.turns.running == 2
        with pytest.raises(openai.RateLimitError) as caught:
            served.openai.embeddings.create(**document)  # type: ignore[arg-type]
        assert int(caught.value.response.headers["retry-after"]) >= 1 and caught.value.code == "busy"
        overloaded = served.post("/embed", {"inputs": "the cat"})
        assert overloaded.status_code == 429 and overloaded.json()["error_type"] == "Overloaded"
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * 4 and served.state.turns.held == 0


def test_who_hangs_up(served: Served, writer: str) -> None:
    """The text ends after the token under way, and the next request has its turn."""
    before = _counted(served, 'ditto_serve_texts_total{model="writer"}')
    document = {"model": writer, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=document, timeout=60) as stream:
        first = next(line for line in stream.iter_lines() if line)
        assert json.loads(first.removeprefix("data: "))["choices"][0]["text"]
    _until(lambda: served.state.turns.held == 0)
    assert _counted(served, 'ditto_serve_texts_total{model="writer"}') == before + 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/completions", json=document | {"stream": False}, timeout=0.5)
    _until(lambda: served.state.turns.held == 0)
    assert served.post("/embed", {"inputs": "the cat"}).status_code == 200


def _counted(served: Served, name: str) -> float:
    lines = served.state.metrics.text().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def _until(there: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_text_is_logged(served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails: the log says which kind of error, and where."""

    def broken(*args: Any) -> Any:
        raise RuntimeError("the secret text")

    monkeypatch.setattr(served.state.cluster._client, "infer", broken)
    found = served.post("/v1/embeddings", {"model": "vectors", "input": "the cat"})
    assert found.status_code == 500 and "secret" not in found.text and "secret" not in caplog.text
    assert "RuntimeError" in caplog.text and "test_serve.py" in caplog.text


def test_the_command_line_asks_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints is the same, and nothing is connected to but the socket; one that cannot answer is no matter."""
    texts = [part for text in TEXTS for part in ("--text", text)]
    asked = ["infer", "--model", "labels", *texts, "--batch", "3"]
    pair = ["infer", "--model", "score", "--text", PAIRS[0][0], "--pair", PAIRS[0][1]]

    def run(*args: str) -> Any:
        return CliRunner().invoke(cli, args, env={"DITTO_HOME": str(place.root)})

    alone, alone_json = run(*pair), run(*asked, "--json")
    state = State(ditto.connect(place.root / "configs" / "client.yaml"))
    with serving(state, place.root, place.root / "configs" / "client.yaml", more=infer_serving.ROUTES) as said:
        with monkeypatch.context() as patch:
            patch.setattr("ditto.cli.asked.settings_for", lambda *_: pytest.fail("it connected by itself"))
            there, there_json = run(*pair), run(*asked, "--json")
            long = run("infer", "--model", "labels", "--text", "the cat " * 20)
            missing = run("infer", "--model", "other", "--text", "a")
        assert httpx.post(f"{said['address']}/local/infer", json={}).status_code == 404
        with monkeypatch.context() as patch:
            patch.setattr(state.turns, "places", 0)
            assert run(*pair).exit_code == 0, "it asked by itself"
    assert there.exit_code == 0 == alone.exit_code, there.output
    assert _shape(there.stdout) == _shape(alone.stdout) and _shape(there.stderr) == _shape(alone.stderr)
    found, want = json.loads(there_json.stdout), json.loads(alone_json.stdout)
    assert found.keys() == want.keys() and there_json.stderr == ""
    for one, other in zip(found["output"], want["output"], strict=True):
        assert one == pytest.approx(other, abs=CLOSE)
    assert [row["label"] for row in found["answers"]] == [row["label"] for row in want["answers"]]
    assert found["online"]["rounds"] == want["online"]["rounds"] and found["jobs"] == want["jobs"]
    assert sum(found["spent"]["parts"].values()) == pytest.approx(found["spent"]["seconds"])
    assert long.exit_code == 10 and "text 1" in long.output and missing.exit_code == 12


def test_the_command_line_generates_by_it(place: Place, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text and summary; the first Ctrl-C ends it after the token under way, which the server hears."""
    asked = ["generate", "--model", writer, "--prompt", PROMPT, "--max-new-tokens", "4"]

    def run(*args: str) -> Any:
        return CliRunner().invoke(cli, args, env={"DITTO_HOME": str(place.root)})

    def interrupted(self: Writer, text: str) -> None:
        write(self, text)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(Writer, "write", write)

    class Told(threading.Event):
        """Waits until the command says so, so that no token is made meanwhile."""

        def is_set(self) -> bool:
            return self.wait(20)

    alone, alone_json = run(*asked), run(*asked, "--json")
    write, state = Writer.write, State(ditto.connect(place.root / "configs" / "client.yaml"))
    with serving(state, place.root, place.root / "configs" / "client.yaml", more=generate_serving.ROUTES) as said:
        monkeypatch.setattr("ditto.cli.generate.settings_for", lambda *_: pytest.fail("it connected by itself"))
        there, there_json = run(*asked), run(*asked, "--json", "--prompt", "the")
        long = run("generate", "--model", writer, "--prompt", "a" * 60)
        vectors = run("generate", "--model", "vectors", "--prompt", "a")
        monkeypatch.setattr(Writer, "write", interrupted)
        monkeypatch.setattr(generate_serving, "Event", Told)
        short = run(*asked)
        for path in (generate_serving.PATH, generate_serving.STOP):
            assert httpx.post(f"{said['address']}{path}", json={}).status_code == 404
    assert there.exit_code == 0 == alone.exit_code and there.stdout == alone.stdout, there.output
    assert _shape(there.stderr) == _shape(alone.stderr)
    found, want = json.loads(there_json.stdout), json.loads(alone_json.stdout)
    assert found.keys() == want.keys() and there_json.stderr == "" and found["stopped_by"] == "length"
    assert found["output"][0] == want["output"][0] and len(found["output"]) == 2
    assert long.exit_code == 10 and vectors.exit_code == 2, "as it says by itself"
    assert short.exit_code == 0 and short.stdout == there.stdout[: len(PROMPT) + 1] + "\n", short.output
    assert "one token" in short.stderr and not generate_serving._under_way


def _shape(text: str) -> str:
    """Without numbers, what their width moves, and which parts of the wall were the largest."""
    return re.sub(r"[\s,]+", " ", re.sub(r"[-+]?[\d.,]+( ?[kMG]?B)?", "#", text.partition(" s in all")[0]))


def test_out_of_range(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that may be wrong says so; with `strict` there is none."""
    ask = served.state.cluster._client.infer

    def astray(*args: Any) -> Any:
        answer = ask(*args)
        answer.report["in_range"] = False
        return answer

    monkeypatch.setattr(served.state.cluster._client, "infer", astray)
    document = {"model": "vectors", "input": "the cat"}
    doubtful = served.post("/v1/embeddings", document)
    assert doubtful.headers["x-ditto-in-range"] == "false" and doubtful.json()["ditto"]["in_range"] is False
    monkeypatch.setattr(served.state, "strict", True)
    refused = served.post("/v1/embeddings", document)
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "out_of_range"
    assert _counted(served, 'ditto_serve_out_of_range_jobs_total{model="vectors"}') == 2


def test_one_for_a_home(served: Served, tmp_path: Path) -> None:
    assert places.running(served.home) == served.said and places.read(served.home) == served.said
    assert (served.home / places.NOTE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ClusterError, match=served.url), server.listening("127.0.0.1", 0, served.home):
        pass
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ClusterError, match="taken"), server.listening("127.0.0.1", port, tmp_path):
        pass
    (tmp_path / places.NOTE).write_text(json.dumps(served.said))
    assert places.running(tmp_path) is None, "its process was killed"

"""The page of `ditto serve`: what it is made of, what it is told, and that a browser shows it.

On the cluster of `place`, the server in a thread. About 8 s of CPU here, 4 s of the four servers, and 10 s of Chromium
where it is installed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from place import CLOSE, CLOSE_VECTORS, KINDS, TEXTS, Place
from test_pooling import checkpoint
from test_serve import KEY, serving

import ditto
from ditto.client.sent import KEEP, Sent, entropy
from ditto.engine.program import Wire
from ditto.engine.sharing import seeded_share, share
from ditto.errors import BY_CODE, Busy, PeerAbsent
from ditto.ring import pack, unpack
from ditto.serve import shown
from ditto.serve.page import FILES
from ditto.serve.state import State
from ditto.wire import party_pb2

HOSTILE = ("<img src=x onerror=document.title='owned'>", "</script><b>bold</b>", "high & low")
TEXT = "the dog sat."


@dataclass
class Page:
    cluster: ditto.Cluster
    state: State
    url: str

    def ask(self, **question: Any) -> list[dict[str, Any]]:
        reply = httpx.post(f"{self.url}/page/ask", json=question, timeout=60)
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line]


@pytest.fixture(scope="module")
def page(place: Place, writer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Beside the models of `place` one whose labels are markup; its server is a client of its own."""
    home = tmp_path_factory.mktemp("serve")
    hostile = checkpoint(tmp_path_factory.mktemp("hostile") / "labels", KINDS["labels"][0], labels=HOSTILE)
    place.cluster.share(hostile, "hostile", calibrate=TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(home))
        state = State(ditto.connect(place.root / "configs" / "client.yaml"))
    with serving(state, home) as said:
        yield Page(place.cluster, state, said["address"])
    place.cluster.remove("hostile")


def one(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [event for event in events if event["event"] == kind]
    return found


# The files ----------------------------------------------------------------------------------------


def test_the_page_is_local_and_bare() -> None:
    """Nothing from elsewhere, no code and no style in the markup, no markup made of texts."""
    content = {name: files("ditto.serve").joinpath("static", name).read_text() for name in FILES}
    for text in content.values():
        assert not re.search(r"https?:|//[a-z0-9-]+\.|@import|url\(", text)
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|javascript:", content["page.html"])
    assert re.findall(r"<script[^>]*>(.*?)</script>", content["page.html"], re.DOTALL) == [""]
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(|Storage|cookie|\.style\b"
    )
    assert not re.search(banned, content["page.js"])
    named = set(re.findall(r"(?:src|href)=\"([^\"]*)\"", content["page.html"]))
    assert named == {"data:,", "page/page.css", "page/page.js"}


@pytest.mark.parametrize(
    "path, kind", [("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")]
)
def test_headers(page: Page, path: str, kind: str) -> None:
    reply = httpx.get(page.url + path)
    assert reply.status_code == 200 and reply.headers["content-type"] == f"{kind}; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert reply.headers["cache-control"] == "no-store"
    assert len(reply.headers.get_list("content-security-policy")) == 1


def test_every_element_is_labelled() -> None:
    """What people type into has a label, and what the script asks for is there."""
    html, script = (files("ditto.serve").joinpath("static", name).read_text() for name in ("page.html", "page.js"))
    fields = re.findall(
        r"<(?:input|select|textarea)[^>]* id=\"([^\"]+)\"|<(?:input|select|textarea) id=\"([^\"]+)\"", html
    )
    assert len(fields) == 6
    for names in fields:
        assert f'<label for="{names[0] or names[1]}"' in html
    ids = re.findall(r"\sid=\"([^\"]+)\"", html)
    assert len(ids) == len(set(ids)) and set(re.findall(r"\$\(\"([^\"]+)\"\)", script)) <= set(ids)
    for kind in ("labels", "scores", "vector", "tokens", "span", "text"):
        assert f"\n  {kind}: (said" in script, "an answer that nobody draws"
    assert 'aria-live="polite"' in html and '<html lang="en">' in html


# What it is told ----------------------------------------------------------------------------------


def test_the_models(page: Page) -> None:
    said = httpx.get(f"{page.url}/page/models").json()
    kinds = {model["name"]: model["kind"] for model in said["models"]}
    labels = dict.fromkeys(("hostile", "labels", "score", "tags"), "labels")
    assert kinds == labels | {"vectors": "vector", "writer": "text"}
    assert said["version"] == ditto.__version__
    [hostile] = [model for model in said["models"] if model["name"] == "hostile"]
    assert hostile["labels"] == list(HOSTILE) and hostile["max_length"] == 32


def test_labels(page: Page) -> None:
    """The API's answer; layers as they come; and of what the parties were sent, that its halves are the question."""
    want = next(iter(page.cluster.model("hostile").classify(TEXT)))
    events = page.ask(model="hostile", text=TEXT)
    kinds = [event["event"] for event in events]
    assert kinds.index("accepted") < kinds.index("layer") < kinds.index("answer")
    assert kinds[-3:] == ["answer", "cost", "seen"]
    layers = one(events, "accepted")["layers"]
    done = [(event["layer"], event["phase"]) for event in events if event["event"] == "layer"]
    assert sorted(done) == sorted((i, phase) for i in range(len(layers)) for phase in ("offline", "online"))
    answer = one(events, "answer")
    assert answer["in_range"] is True and answer["labels"][0]["label"] == want.label
    assert {row["label"]: row["probability"] for row in answer["labels"]} == pytest.approx(
        want.probabilities, abs=CLOSE
    )
    cost = one(events, "cost")
    assert cost["online"]["rounds"] == want.cost.online.rounds == sum(row["rounds"] for row in cost["timeline"]["rows"])
    assert tuple(cost["online"]["bytes_sent"]) == want.cost.online.bytes_sent
    assert [row["name"] for row in cost["timeline"]["rows"]] == layers


def test_what_the_parties_were_sent(page: Page) -> None:
    """Party 1's bytes are as many as they should be; with party 0's seed they make the one-hot rows of the text."""
    seen = one(page.ask(model="hostile", text=TEXT), "seen")
    tokens = page.cluster.model("hostile")._public.tokenizer.encode([TEXT], 32)
    width = seen["input"]["shape"][-1]
    assert seen["input"]["numbers"] == 16 * width and seen["told"]["tokens"] == 16 and seen["told"]["texts"] == 1
    assert len(bytes.fromhex(seen["party0"]["seed"])) == 16 and seen["party0"]["bytes"] < 16 * width
    assert seen["party1"]["shares"]["total"] >= 16 * width * seen["input"]["bits"] // 8
    together = seen["together"]
    assert together["place"] == width + tokens.ids[0, 1] and together["ones"]
    for row in together["numbers"]:
        at, zero, one_, both = map(int, row)
        assert both == (at == together["place"]) == (zero + one_) % (1 << seen["input"]["bits"])
    assert seen["party1"]["shares"]["entropy"] > 7.5 > 1 > together["sum"]["entropy"]  # a row has few that are not 0
    other = one(page.ask(model="hostile", text=TEXT), "seen")
    assert other["party0"]["seed"] != seen["party0"]["seed"] and other["party1"]["first"] != seen["party1"]["first"]


def test_pairs_and_vectors(page: Page) -> None:
    pair = one(page.ask(model="hostile", text="the cat", second="a dog"), "answer")
    want = next(iter(page.cluster.model("hostile").classify([("the cat", "a dog")])))
    assert {row["label"]: row["probability"] for row in pair["labels"]} == pytest.approx(want.probabilities, abs=CLOSE)
    answer = one(page.ask(model="vectors", text="the cat", second="a dog"), "answer")
    vectors = page.cluster.model("vectors").encode(["the cat", "a dog"])  # of length 1
    assert np.array(answer["vectors"]) == pytest.approx(vectors, abs=2 * CLOSE_VECTORS)  # of fp32's, each of both
    found = np.array(answer["vectors"])
    assert answer["cosine"] == pytest.approx(found[0] @ found[1], abs=1e-3)  # they are rounded to 5 digits
    assert one(page.ask(model="vectors", text="the cat"), "answer")["cosine"] is None


@dataclass
class _Model:
    """What `shown.answer` asks of a model."""

    kind: str
    labels: tuple[str, ...] = ()
    problem_type: str = ""

    @property
    def description(self) -> Any:
        return SimpleNamespace(dimensions=self)


def test_other_heads(page: Page) -> None:
    """Regression, several labels at once, tokens and spans, from values that are given."""
    tokenizer = page.cluster.model("hostile")._public.tokenizer

    def said(model: _Model, text: Any, value: Any) -> dict[str, Any]:
        return shown.answer(cast(Any, model), tokenizer, [text], [value])

    assert said(_Model("labels", ("score",)), "sat", [0.25]) == {"kind": "scores", "scores": [["score", 0.25]]}
    several = said(_Model("labels", ("a", "b", "c"), "multi_label_classification"), "sat", [3.0, -3.0, 1.0])
    assert several["chosen"] == ["a", "c"] and [row["label"] for row in several["labels"]] == ["a", "c", "b"]
    none = said(_Model("labels", ("a", "b"), "multi_label_classification"), "sat", [-1.0, -2.0])
    assert none["chosen"] == []
    text = "the dog sat"
    pieces = tokenizer.pieces(text, 32)
    logits = [[0.0, float(piece.start == 4)] for piece in pieces]
    tokens = said(_Model("tokens", ("O", "NOUN")), text, logits)["tokens"]
    assert {row["token"]: row["label"] for row in tokens} == {"the": "O", "dog": "NOUN", "sat": "O"}
    first, last = (
        next(i for i, piece in enumerate(pieces) if piece.start == at and piece.segment == 0) for at in (4, 8)
    )
    values = [[float(i == first), float(i == last)] for i in range(len(pieces))]
    assert said(_Model("span"), text, values)["text"] == "dog sat"
    assert said(_Model("span"), text, [[float(i == 0), float(i == 0)] for i in range(len(pieces))])["text"] == ""


def test_a_text_comes_token_by_token(page: Page) -> None:
    events = page.ask(model="writer", text="hello", tokens=4)
    tokens = [event["text"] for event in events if event["event"] == "token"]
    assert len(tokens) == 4 and one(events, "answer")["text"] == "".join(tokens)
    seen = one(events, "seen")
    assert seen["stages"] == 4 and seen["told"]["new_tokens"] == 4


@pytest.mark.parametrize(
    "question, code",
    [
        ({"model": "hostile", "text": " "}, "EMPTY_TEXT"),
        ({"model": "hostile", "text": "the cat " * 20}, "TEXT_TOO_LONG"),
        ({"model": "absent", "text": "the cat"}, "UNKNOWN_MODEL"),
        ({"model": "../labels", "text": "the cat"}, "USAGE"),
        ({"model": "writer", "text": "hello", "tokens": 500}, "USAGE"),
    ],
)
def test_what_fails_says_what_to_do(page: Page, question: dict[str, Any], code: str) -> None:
    failed = one(page.ask(**question), "failed")
    assert failed["code"] == code and failed["todo"] and failed["message"] and failed["retry_s"] is None


def test_advice() -> None:
    assert shown.TODO.keys() <= BY_CODE.keys()
    assert shown.failure(Busy("later", retry_s=7))["retry_s"] == 7
    assert "cluster up" in shown.failure(PeerAbsent("party0 is not there"))["todo"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"model": "hostile"},
        {"model": "hostile", "text": 3},
        {"model": "hostile", "text": "a", "tokens": 0},
        {"model": "hostile", "text": "a", "other": 1},
        {"model": "hostile", "text": "a", "temperature": "1"},
    ],
)
def test_other_questions_are_refused(page: Page, document: Any) -> None:
    reply = httpx.post(f"{page.url}/page/ask", json=document)
    assert reply.status_code == 400 and reply.json()["error"]


def test_who_closes_the_page_ends_the_job(page: Page) -> None:
    """Before its end: it is not counted as done."""
    before, question = _jobs(page, "writer"), {"model": "writer", "text": "hello", "tokens": 40}
    with httpx.stream("POST", f"{page.url}/page/ask", json=question, timeout=60) as stream:
        assert any('"token"' in line for line in stream.iter_lines())
    _settled(page)
    assert _jobs(page, "writer") == before and one(page.ask(model="hostile", text=TEXT), "answer")


def _settled(page: Page) -> None:
    until = time.monotonic() + 30
    while page.state.turns.held:
        assert time.monotonic() < until
        time.sleep(0.02)


def _jobs(page: Page, model: str) -> float:
    lines = page.state.metrics.text().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f'ditto_serve_jobs_total{{model="{model}"'))


# Who else may not ask -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/page/ask", "/page/models"])
def test_no_other_origin_asks(page: Page, path: str) -> None:
    """The adversary is a page that is open in the same browser, at an address or a name of its own."""
    question = {"model": "hostile", "text": TEXT}
    method = "POST" if path.endswith("ask") else "GET"
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ):  # fmt: skip
        reply = httpx.request(method, page.url + path, json=question, headers=headers)
        assert reply.status_code == 403 and not [name for name in reply.headers if name.startswith("access-control")]
    plain = httpx.post(f"{page.url}/page/ask", content=json.dumps(question), headers={"content-type": "text/plain"})
    assert plain.status_code == 415


def test_a_key_is_asked_for_questions_alone(page: Page, tmp_path: Path) -> None:
    with serving(State(_Unclosed(page.cluster)), tmp_path, key=KEY) as said:  # type: ignore[arg-type]
        for path in ("/", "/page/page.css", "/page/page.js"):
            assert httpx.get(said["address"] + path).status_code == 200
        question, key = {"model": "hostile", "text": TEXT}, {"authorization": f"Bearer {KEY}"}
        for path in ("/page/models", "/page/none", "/page/ask"):
            assert httpx.get(said["address"] + path).status_code == 401
        assert httpx.post(f"{said['address']}/page/ask", json=question).status_code == 401
        assert httpx.get(f"{said['address']}/page/models", headers=key).status_code == 200


class _Unclosed:
    """A cluster that outlives the server."""

    def __init__(self, cluster: ditto.Cluster) -> None:
        self._cluster = cluster

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)


# What is kept of what is sent ---------------------------------------------------------------------


@pytest.mark.parametrize("ring", [12, 16, 64])
def test_shares_are_put_together_from_what_was_sent(ring: int) -> None:
    """Of 12 bits, which are no whole bytes, and of 64, which are no numbers of a browser's."""
    wire, x = Wire("x", ring, 0, (5, 7), 1.0), torch.arange(35, dtype=torch.int64).reshape(5, 7) - 17
    seed, sent = bytes(range(16)), Sent()
    data = pack(share("x", x, wire, seed), ring)
    header = party_pb2.InputHeader(name="x", ring=ring, shape=[5, 7], seed=seed)
    sent.begin(0, party_pb2.JobTerms(model="m"), {"x": wire})
    list(sent.noting(0, iter([party_pb2.PutInputRequest(header=header)])))
    pieces = [party_pb2.TensorChunk(name="x", total=len(data), data=part) for part in (data[:10], data[10:])]
    list(sent.noting(1, iter([party_pb2.PutInputRequest(chunk=piece) for piece in pieces])))
    assert sent.deliveries[1].share_bytes == len(data) == int(sent.deliveries[1].counts.sum())
    assert sent.deliveries[0].share_bytes == 16 and sent.deliveries[1].messages == 2
    seen = shown.seen(sent)
    together, numbers = seen["together"], [[int(n) for n in row] for row in seen["together"]["numbers"]]
    assert together["place"] == 7 and not together["ones"] and together["nonzero"] == 34
    assert [(at, both) for at, _, _, both in numbers] == [(at, at - 17) for at in range(4, 11)]
    ones = unpack(data, ring, (35,)).tolist()
    assert all(one_ == ones[at] % 2**ring and (zero + one_ - both) % 2**ring == 0 for at, zero, one_, both in numbers)
    assert together["expanded"].startswith(pack(seeded_share("x", wire, seed), ring)[: 4 * ring // 8].hex(" "))
    assert (
        together["sum"]["counts"] == np.bincount(np.frombuffer(pack(x, ring), dtype=np.uint8), minlength=256).tolist()
    )


def test_an_input_too_large_to_keep() -> None:
    sent = Sent()
    sent.begin(0, party_pb2.JobTerms(), {"x": Wire("x", 16, 0, (5, 7), 1.0)})
    huge = party_pb2.TensorChunk(name="x", total=KEEP + 1, data=b"abc")
    list(sent.noting(1, iter([party_pb2.PutInputRequest(chunk=huge)])))
    seen = shown.seen(sent)
    assert seen["together"] is None and seen["party1"]["first"] == "61 62 63" and seen["party1"]["shares"]["total"] == 3


def test_entropy() -> None:
    assert entropy(np.full(256, 3)) == 8 and entropy(np.zeros(256, dtype=np.int64)) == 0
    assert entropy(np.eye(256, dtype=np.int64)[0] * 9) == 0


# In a browser -------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(page: Page, tmp_path: Path) -> None:
    """Type, ask, read; labels that are markup are text; nothing is asked for elsewhere, and no policy is breached."""
    want = next(iter(page.cluster.model("hostile").classify(TEXT)))
    with Browser(tmp_path, width=420) as browser:
        browser.open(page.url)
        browser.until("!document.querySelector('#model').disabled")
        assert browser.run("document.querySelector('#model').value") == "hostile"
        assert HOSTILE[0] in browser.text("#about")
        browser.type("#text", TEXT)
        browser.press("Enter", 13, modifiers=2)
        browser.until("!document.querySelector('#seen').hidden")
        assert browser.text("#answer .big") == want.label
        shown_labels = browser.run("[...document.querySelectorAll('.bars b')].map((b) => b.textContent)")
        assert set(shown_labels) == set(HOSTILE)
        assert browser.run("document.querySelectorAll('#answer img, #answer script, #answer b b').length") == 0
        assert "owned" not in browser.run("document.title")
        assert f"{want.cost.online.rounds}" in browser.text("#figures")
        assert browser.run("document.querySelectorAll('#gantt svg.axis').length") == 1
        assert browser.run("document.documentElement.scrollWidth") <= 420
        browser.run("document.querySelector('#text').value = ' '")
        browser.click("#go")
        browser.until("document.querySelector('.notice.bad')")
        assert "EMPTY_TEXT" in browser.text("#notices")
        # another question, and away from it
        browser.run("document.querySelector('#model').value = 'writer'")
        browser.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
        browser.run("document.querySelector('#tokens').value = '40'; document.querySelector('#text').value = 'hello'")
        browser.click("#go")
        browser.until("document.querySelector('.written')")
        browser.press("Escape", 27)
        browser.until("document.querySelector('#go').hidden === false")
        assert "Stopped" in browser.text("#notices")
        assert browser.complaints() == []
        assert {urlsplit(address).netloc for address in browser.requests() if address != "data:,"} == {
            urlsplit(page.url).netloc
        }
    _settled(page)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_is_asked_for_the_key(page: Page, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(State(_Unclosed(page.cluster)), home, key=KEY) as said, Browser(tmp_path / "profile") as browser:  # type: ignore[arg-type]
        browser.open(said["address"])
        browser.until("!document.querySelector('#key').hidden")
        browser.type("#key-text", "wrong")
        browser.click("#key button")
        browser.until("document.querySelector('#key-wrong').textContent")
        browser.type("#key-text", KEY)
        browser.click("#key button")
        browser.until(
            "document.querySelector('#key').hidden"
            f" && document.querySelectorAll('#model option').length === {len(KINDS) + 2}"
        )
        assert browser.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        browser.open(said["address"] + "/?")
        browser.until("!document.querySelector('#key').hidden")

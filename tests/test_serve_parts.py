"""The parts of `ditto serve` that no cluster is needed for: its guard, its table of errors, stops. About 1 s."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

import ditto
from ditto.errors import DittoError
from ditto.serve import body, guard, local, neighbours
from ditto.serve import place as places
from ditto.serve.errors import AGAIN, STATUS, failure, status_of
from ditto.serve.guard import Guard
from ditto.serve.metrics import Metrics
from ditto.serve.turns import Turns
from ditto.serve.writing import Stops

KEY = "correct-horse-battery"


def test_a_key() -> None:
    """By a Guard of its own before the same routes; the socket of this user's directory needs none."""
    app = Guard(_fine, Metrics(Turns(1, 1)), ["/v1/models"], KEY, ["ditto.example"])

    def status(scope_state: dict[str, Any] | None = None, path: str = "/v1/models", **headers: str) -> int:
        async def ask() -> int:
            raw = [(b"host", b"127.0.0.1"), *((name.encode(), value.encode()) for name, value in headers.items())]
            scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "state": scope_state or {}}
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            await app(scope, _nothing, send)
            return int(sent[0]["status"])

        return asyncio.run(ask())

    assert status() == 401 and status(authorization=f"Bearer {KEY}") == 200 == status(authorization=f"bearer {KEY}")
    for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ", KEY, f"Basic {KEY}", "Bearer é"):
        assert status(authorization=wrong) == 401
    assert status({"unix": True}) == 200 and status({"unix": False}) == 401
    assert status(path="/health") == 200 and status(path="/page/page.js") == 200 and status(path="/metrics") == 401


async def _fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def _nothing() -> Any:
    return {"type": "http.disconnect"}


def test_answers_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "STALLED", 0.05)
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost")]}

    async def stalled(message: Any) -> None:
        await asyncio.sleep(60)

    app = Guard(_fine, Metrics(Turns(1, 1)), [], None)
    asyncio.run(asyncio.wait_for(app(scope, _nothing, stalled), 20))


def test_another_users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Guard(_fine, Metrics(Turns(1, 1)), [], None, (), neighbours.ours)
    with socket.create_server(("127.0.0.1", 0)) as here, socket.create_connection(here.getsockname()) as line:
        scope = {
            "type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost")],
            "client": line.getsockname(), "server": here.getsockname(),
        }  # fmt: skip
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, _nothing, send))
        monkeypatch.setattr("os.getuid", lambda: 4711)
        monkeypatch.setattr(neighbours, "_owner", lambda *_: 4712)
        asyncio.run(app(scope, _nothing, send))
        assert [message["status"] for message in sent if "status" in message] == [200, 403]


def test_only_this_users_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that others may enter, another version, another cluster: the command asks by itself."""
    home = tmp_path / "home"
    (home / "serve").mkdir(parents=True, mode=0o700)
    config = str(home / "configs" / "client.yaml")
    note = {"address": "http://127.0.0.1:1", "pid": 1, "version": ditto.__version__, "config": config}
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(home / places.SOCKET))
        there.listen()
        (home / places.NOTE).write_text(json.dumps(note))
        assert local._connected(home) is not None
        for other in (note | {"version": "0.0"}, note | {"config": None}, {}):
            (home / places.NOTE).write_text(json.dumps(other))
            assert local._connected(home) is None
        (home / places.NOTE).write_text(json.dumps(note))
        for mode in (0o750, 0o701, 0o777):
            (home / "serve").chmod(mode)
            assert local._connected(home) is None
        (home / "serve").chmod(0o700)
        monkeypatch.setattr("os.getuid", lambda: 4711)
        assert local._connected(home) is None


def test_statuses() -> None:
    """Each error has one; 429 and 503 are for what may succeed later."""
    every: list[type[DittoError]] = [DittoError, *DittoError.__subclasses__()]
    for error in every:
        status = status_of(error("x"))
        assert 400 <= status < 600 and (error in STATUS or status == 500)
        answer = failure("/v1/x", error("x"))
        assert answer.status_code == status and ("x-should-retry" in answer.headers) == (status not in AGAIN)
    assert guard.STALLED > body.SLOWEST


def test_stops() -> None:
    """Whatever the pieces: what precedes the first stop, and nothing of it."""
    text = "one two three two"
    for stops, want in (
        (["two"], "one "),
        (["three", "two t"], "one "),
        (["e t", "xx"], "on"),
        (["four", "o x"], text),
    ):
        for size in range(1, len(text)):
            found, said = Stops(stops), ""
            for i in range(0, len(text), size):
                piece, stopped = found.push(text[i : i + size])
                said += piece
                if stopped:
                    break
            else:
                said += found.finish()
            assert said == want, (stops, size)

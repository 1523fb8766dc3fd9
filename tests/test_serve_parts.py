"""The parts of `ditto serve` that no cluster is needed for: its guard, its table of errors, stops. About 1 s."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

import ditto
from ditto.errors import Busy, DittoError
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


# Turns --------------------------------------------------------------------------------------------


class Jobs:
    """Jobs that last until they are told to end, in the order in which they began."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.began = turns, list[str]()
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, room: int = 9) -> str:
        """Refused where more than `room` are under way."""
        self.began.append(name)
        self._ends[name] = asyncio.Event()
        if self.turns.running > room:
            raise Busy("no room")
        await self._ends[name].wait()
        return name

    def of(self, name: str, room: int = 9) -> asyncio.Task[str]:
        return asyncio.ensure_future(self.turns.run(lambda: self.ask(name, room)))

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()


async def settled() -> None:
    for _ in range(9):
        await asyncio.sleep(0)


def test_jobs_of_several_requests_run_beside_each_other_in_one_line() -> None:
    async def run() -> None:
        jobs = Jobs(Turns(2, 9))
        a, b, c, d = (jobs.of(name) for name in "abcd")
        await settled()
        assert jobs.began == ["a", "b"] and jobs.turns.running == 2
        c.cancel()  # who leaves the line holds up nobody
        await jobs.end("b")
        assert jobs.began == ["a", "b", "d"] and b.result() == "b"
        await jobs.end("a")
        await jobs.end("d")
        assert (a.result(), d.result(), jobs.turns.running) == ("a", "d", 0)

    asyncio.run(run())


def test_who_is_refused_beside_another_job_asks_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        jobs = Jobs(Turns(3, 9))
        a, c = jobs.of("a"), jobs.of("c")
        await settled()
        b = jobs.of("b", room=1)
        await settled()
        assert jobs.began == ["a", "c", "b"] and jobs.turns.running == 2, "b was refused, and waits"
        late = jobs.of("late")
        await jobs.end("a")
        assert jobs.began == ["a", "c", "b"] and a.done(), "c is still under way"
        await jobs.end("c")
        assert jobs.began == ["a", "c", "b", "b"] and jobs.turns.running == 1
        await jobs.end("b")
        assert b.result() == "b" and jobs.began[-1] == "late" and c.done()
        more = jobs.of("more")
        await settled()
        assert jobs.began[-1] == "late", "one at a time for a minute"
        await jobs.end("late")
        await jobs.end("more")
        assert late.done() and more.done()

        monkeypatch.setattr(jobs.turns, "_alone_until", 0.0)
        e, f = jobs.of("e"), jobs.of("f")
        await settled()
        assert jobs.turns.running == 2, "and then several again"
        for name, task in (("e", e), ("f", f)):
            await jobs.end(name)
            assert task.result() == name

    asyncio.run(run())


def test_who_is_refused_alone_is_told_so() -> None:
    async def run() -> None:
        jobs = Jobs(Turns(2, 9))
        with pytest.raises(Busy, match="no room"):
            await jobs.of("a", room=0)
        assert jobs.began == ["a"] and jobs.turns.running == 0

    asyncio.run(run())

"""Several jobs of one caller in flight: order, errors, refusals, ends. On no cluster but the last, which are on that of
`place`. About 5 s of CPU."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from place import CLOSE, TEXTS, Place
from typer.testing import CliRunner

import ditto
from ditto.cli import app
from ditto.client.flight import MOST, REFUSED, Ending, Window, flown
from ditto.errors import Busy, Interrupted, PeerLost, UsageError
from ditto.serve import flying
from ditto.serve.state import State
from ditto.serve.turns import Turns

# What begins, and what comes ----------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 7), st.integers(1, MOST), st.data())
def test_answers_in_order_whatever_ends_first(count: int, size: int, data: st.DataObject) -> None:
    """Any jobs may fail, any may be refused while another is under way: what is given is what one at a time gives."""
    failing = data.draw(st.sets(st.integers(0, 7)), "failing")
    refusing = data.draw(st.sets(st.integers(0, 7)), "refused while others run")
    told: list[BaseException] = []
    window: Window[int, int] = Window(range(count), size, told.append)
    running, beside, given_, wanted = set[int](), set[int](), list[int](), list[int]()
    for job in range(count):
        wanted.append(job)
        if job in failing:
            break

    def begin() -> None:
        for at, job in window.begin():
            assert at == job and job not in running
            running.add(job)
            assert len(running) <= (1 if told else size) and len(given_) <= job < len(given_) + size
            if len(running) > 1:
                beside.update(running)

    begin()
    while not window.over:
        if window.ready:
            if len(given_) in failing:
                with pytest.raises(PeerLost, match=f"^job {len(given_)}$"):
                    window.give()
                given_.append(len(given_))
                break
            landed = window.give()
            assert landed.value == 10 * landed.job and landed.seconds >= 0
            given_.append(landed.job)
        else:
            job = data.draw(st.sampled_from(sorted(running)), "ends")
            running.discard(job)
            if job in refusing & beside:
                beside.discard(job)
                window.failed(job, data.draw(st.sampled_from([kind("no room") for kind in REFUSED])))
            elif job in failing:
                window.failed(job, PeerLost(f"job {job}"))
            else:
                window.answered(job, 10 * job)
        begin()
    assert given_ == wanted and len(told) <= 1


def test_refused_alone_is_refused() -> None:
    """As it would be one at a time."""
    window: Window[str, None] = Window("ab", 2)
    assert [at for at, _ in window.begin()] == [0, 1]
    window.failed(0, Busy("full"))
    assert not [*window.begin()] and not window.ready
    window.answered(1, None)
    assert [*window.begin()] == [(0, "a")]
    window.failed(0, Busy("still full"))
    assert window.ready
    with pytest.raises(Busy, match="still full"):
        window.give()


def test_seconds_of_all_jobs_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [50.0]
    monkeypatch.setattr("ditto.client.flight.time.perf_counter", lambda: clock[0])
    window: Window[int, None] = Window(range(3), 2)
    assert len([*window.begin()]) == 2
    clock[0] += 3
    window.answered(1, None)
    clock[0] += 1
    window.answered(0, None)
    first, second = window.give(), window.give()
    clock[0] += 10  # nobody asks
    assert len([*window.begin()]) == 1
    clock[0] += 2
    window.answered(2, None)
    assert (first.seconds, second.seconds, window.give().seconds) == (4, 0, 2)


@pytest.mark.parametrize("in_flight", [0, MOST + 1, -1])
def test_so_many_and_no_more(in_flight: int, place: Place) -> None:
    with pytest.raises(UsageError, match=f"{in_flight} jobs in flight: 1 to {MOST}"):
        next(flown([1], lambda job, ending: job, in_flight))
    with pytest.raises(UsageError, match="jobs in flight"):
        place.cluster.model("labels").classify(TEXTS, in_flight=in_flight)
    for command in ("infer", "evaluate", "serve"):
        result = CliRunner().invoke(app, [command, "--in-flight", str(in_flight)])
        assert result.exit_code == 2 and "in-flight" in result.output


# In threads ---------------------------------------------------------------------------------------


class Jobs:
    """Numbers that answer when they are told to; each notes how it ended."""

    def __init__(self, count: int) -> None:
        self.events = [threading.Event() for _ in range(count)]
        self.errors: dict[int, BaseException] = {}
        self.begun: list[int] = []
        self.ended: list[int] = []

    def ask(self, job: int, ending: Ending) -> int:
        ending.on(lambda: self.ended.append(job))
        ending.on(self.events[job].set)
        self.begun.append(job)
        assert self.events[job].wait(20)
        ending.check()
        if job in self.errors:
            raise self.errors[job]
        return job

    def let(self, *jobs: int) -> None:
        for job in jobs:
            self.events[job].set()


def test_nothing_begins_that_nobody_waits_for() -> None:
    jobs = Jobs(4)
    answers = flown(range(4), jobs.ask, 2)
    assert not jobs.begun
    jobs.let(0)
    assert next(answers).job == 0
    _until(lambda: sorted(jobs.begun) == [0, 1, 2])
    answers.close()
    assert sorted(jobs.ended) == [1, 2] and sorted(jobs.begun) == [0, 1, 2], "told to end, and awaited"


def test_an_error_comes_in_its_order_and_ends_the_others() -> None:
    jobs = Jobs(4)
    jobs.errors = {1: PeerLost("the second"), 2: PeerLost("the third")}
    found: list[int] = []
    jobs.let(1, 2)

    def later() -> None:
        _until(lambda: len(jobs.begun) == 3)
        time.sleep(0.05)
        jobs.let(0)

    threading.Thread(target=later).start()
    with pytest.raises(PeerLost, match="the second"), contextlib.closing(flown(range(4), jobs.ask, 3)) as answers:
        found += (each.job for each in answers)
    assert found == [0] and 3 not in jobs.begun


def test_an_interrupt_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the thread that waits."""
    jobs = Jobs(3)

    def interrupted(*args: Any, **named: Any) -> Any:
        _until(lambda: len(jobs.begun) == 3)
        raise KeyboardInterrupt

    monkeypatch.setattr("ditto.client.flight.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(flown(range(3), jobs.ask, 3))
    assert sorted(jobs.ended) == [0, 1, 2]


def test_one_is_asked_in_the_callers_thread() -> None:
    here = threading.current_thread()
    found = [*flown([7], lambda job, ending: threading.current_thread(), 5)]
    found += flown([1, 2], lambda job, ending: threading.current_thread(), 1)
    assert [each.value for each in found] == [here] * 3 and [each.job for each in found] == [7, 1, 2]


def test_what_was_to_end_before_ends_at_once() -> None:
    ending, ended = Ending(), list[int]()
    ending.check()
    ending.end()
    ending.on(lambda: ended.append(1))
    assert ended == [1]
    with pytest.raises(Interrupted):
        ending.check()


def test_in_an_event_loop() -> None:
    """The same order; who is cancelled ends what is under way, and waits for it."""
    jobs, found = Jobs(5), list[int]()
    jobs.let(0, 1, 2)

    async def run() -> None:
        async for each in flying.flown(range(5), jobs.ask, 2, Turns(2, 0).run):
            found.append(each.job)

    async def main() -> None:
        task = asyncio.ensure_future(run())
        while len(jobs.begun) < 5 or len(found) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 20))
    assert found == [0, 1, 2] and sorted(jobs.ended) == [3, 4] == sorted(jobs.begun)[3:]


# On servers ---------------------------------------------------------------------------------------


@pytest.fixture
def limited(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A coordinator that takes one job of this client, as far as the client can tell; how many it took at once."""
    client, lock, under_way, most = place.cluster._client, threading.Lock(), [0], list[int]()
    run = client._run

    def one(*args: Any) -> Any:
        with lock:
            if under_way[0]:
                raise Busy(
                    "coordinator: client has 1 jobs waiting or running (max_jobs); try again in 1 s", "coordinator"
                )
            under_way[0] += 1
            most.append(under_way[0])
        try:
            return run(*args)
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(client, "_run", one)
    yield most


def test_a_run_goes_on_where_servers_take_one_job(place: Place, limited: list[int]) -> None:
    answers = list(place.cluster.model("labels").classify(TEXTS, batch=2, in_flight=3))
    assert [answer.text for answer in answers] == TEXTS and limited == [1] * 3
    assert len({answer.cost.job for answer in answers}) == 3


def test_two_run_at_once_and_who_leaves_ends_the_other(place: Place) -> None:
    """Both are under way at the servers before either has ended. The second has no inputs until it is told to end."""
    client = place.cluster._client
    start, both, told = client._start, threading.Barrier(2), threading.Event()

    def late(job: str, terms: Any, *args: Any) -> None:
        both.wait(20)
        if terms.plan.batch == 1:
            args[-1].on(told.set)
            assert told.wait(20)
        start(job, terms, *args)

    before = client.status()["throughput"]["cancelled"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_start", late)
        answers = place.cluster.model("labels").classify(TEXTS[:3], batch=2)
        assert [next(answers).text, next(answers).text] == TEXTS[:2] and not told.is_set()
        answers.close()  # type: ignore[attr-defined]
        assert told.is_set()
    _until(lambda: client.status()["throughput"]["cancelled"] == before + 1)
    assert not client.status()["running"] and not client.status()["queued"]


def test_texts_of_one_request_by_http(place: Place) -> None:
    """Jobs of one request run beside each other, and of several; answers are in the order of the texts."""
    state = State(ditto.connect(place.root / "configs" / "client.yaml"), in_flight=3)
    texts = TEXTS * 4  # three jobs

    async def ask() -> list[Any]:
        model, running, found = await state.model("labels"), list[int](), list[Any]()
        follow = lambda event: running.append(state.turns.running)  # noqa: E731
        async for answered in state.ask(model, await state.encoded(model, texts), follow):
            found += answered.values
        assert max(running) == 3 and state.turns.running == state.turns.held == 0
        running.clear()

        async def request(text: str) -> None:
            async for _ in state.ask(model, await state.encoded(model, [text]), follow):
                pass

        await asyncio.gather(*map(request, TEXTS[:2]))
        assert max(running) == 2, "those of two requests, too"
        await state.close()
        return found

    found = asyncio.run(ask())
    assert np.array(found) == pytest.approx(place.reference("labels", texts), abs=CLOSE)


def test_a_file_is_answered_in_order(place: Place, tmp_path: Path) -> None:
    """What the run took is not the sum of what its jobs did; every second has its name."""
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    asked = ("infer", "--model", "labels", "--file", str(tmp_path / "texts"), "--batch", "2", "--in-flight")
    one, three = (place.cli(*asked, number) for number in ("1", "3"))
    assert np.array(one["output"]) == pytest.approx(np.array(three["output"]), abs=CLOSE)
    assert (one["in_flight"], three["in_flight"], three["jobs"]) == (1, 3, 3)
    for found in (one, three):
        assert found["wall_seconds"] <= found["spent"]["seconds"]
        assert sum(found["spent"]["parts"].values()) == pytest.approx(found["spent"]["seconds"])


def _until(there: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)

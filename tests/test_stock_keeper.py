"""The coordinator's list of what is in stock: what it gives jobs, what it does when parties refuse, how it fills up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tiny import small_model

from ditto.engine.plan import Plan
from ditto.errors import ClusterError, LimitExceeded, PeerAbsent
from ditto.models.compiled import program_for
from ditto.net.config import CoordinatorConfig, StockLevel, Tls
from ditto.net.messages import plan_of
from ditto.service import stock_keeper
from ditto.service.job_run import JobRun
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.stock_keeper import Kept, StockKeeper
from ditto.service.turns import State, Turns
from ditto.wire import party_pb2

SHARE, PLAN = "5" * 32, Plan(1, 8, guard=True)
NOBODY = State((), 0, 0)
TLS = Tls(ca=Path("ca"), cert=Path("cert"), key=Path("key"))


class Refused(grpc.RpcError):
    def __init__(self, code: str) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.FAILED_PRECONDITION

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("ditto-code", self._code),)


class Party:
    """Answers at once, as `answers` says; what it is asked is noted."""

    def __init__(self, answers: Callable[[str, Any], Any]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._answers = answers

    def __getattr__(self, method: str) -> Any:
        def future(request: Any, timeout: float = 0, **_: Any) -> Future[Any]:
            copy = type(request).FromString(request.SerializeToString())
            self.asked.append((method, copy))
            found = self._answers(method, copy)
            if isinstance(found, Future):
                return found
            answer: Future[Any] = Future()
            answer.set_exception(found) if isinstance(found, Exception) else answer.set_result(found)
            return answer

        return SimpleNamespace(future=future)

    def of(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]


def willing(method: str, _: Any) -> Any:
    return party_pb2.StockReply(bytes=7) if method == "Stock" else None


def new_turns() -> Turns:
    return Turns(slots=4, memory=1 << 40, limit=9)


class World:
    def __init__(
        self, root: Path, text: str, answers: Callable[[str, Any], Any] = willing, turns: Turns | None = None,
        **fields: Any,
    ) -> None:  # fmt: skip
        config = CoordinatorConfig(listen="a:1", data_dir=root, tls=TLS, **fields)
        self.parties = {"party0": Party(willing), "party1": Party(answers)}
        self.models = RegisteredModels(root / "models")
        self.model = Registered(model="m", share_id=SHARE, description=text, owner="client/alice")
        self.models.put(self.model)
        self.turns = turns or new_turns()
        self.fingerprint = program_for(text, PLAN).fingerprint
        self.keeper = StockKeeper(config, self.parties, self.turns, self.models, lambda pair: None)  # type: ignore[arg-type]
        self.context = SimpleNamespace(add_callback=lambda call: True)

    def deal(self, count: int = 1) -> list[Any]:
        ways = (lambda: self.model), PLAN, self.fingerprint, "client/alice", count, self.context
        return list(self.keeper.deal(*ways))  # type: ignore[arg-type]

    def name(self, share_id: str = SHARE, plan: Plan = PLAN) -> str:
        model = self.model.model_copy(update={"share_id": share_id})
        return self.keeper.name_for(model, plan, self.fingerprint)

    def run(self, name: str, share_id: str = SHARE, pair: int = 0) -> tuple[JobRun, party_pb2.OpenJobRequest]:
        run = JobRun(name, self.parties, 9.0, "client/alice")  # type: ignore[arg-type]
        run.pair = pair
        ask = party_pb2.OpenJobRequest(job=name, share_id=share_id)
        self.keeper.open(run, ask)
        return run, ask

    @property
    def listed(self) -> set[str]:
        return {path.stem for path in self.keeper._root.glob("*.json")}


@pytest.fixture(scope="module")
def text() -> str:
    return small_model()[0]


def test_a_name_is_given_away_once(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text)
    events = world.deal(2)
    assert [(e.laid.done, list(e.laid.bytes)) for e in events] == [(1, [7, 7]), (2, [7, 7])]
    names = [request.job for request in world.parties["party0"].of("Stock")]
    assert world.listed == {*names} and plan_of(world.parties["party1"].of("Stock")[0].plan) == PLAN
    for other in (world.name(plan=Plan(2, 8, guard=True)), world.name(plan=Plan(1, 8)), world.name(plan=PLAN)):
        world.keeper.leave(other)  # a job that was never opened gives its name back
    world = World(tmp_path, text)  # over a restart
    first = world.name()
    seen = []
    world.parties["party1"]._answers = lambda method, _: seen.append((method, first in world.listed))
    run, ask = world.run(first)
    assert run.stocked and ask.stocked and (run.job, ask.job) == (first, first)
    assert seen == [("OpenJob", False)]  # gone from the list before anybody is asked
    world.keeper.leave(first)
    assert {first, world.name()} == {*names}
    assert world.name() not in names


@pytest.mark.parametrize("code", ["NO_STOCK", "REUSE", "REPLAYED_JOB", "DAMAGED_FILE", "STORAGE"])
def test_a_refusal_costs_the_job_its_stock_alone(code: str, text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text, lambda method, ask: Refused(code) if getattr(ask, "stocked", False) else None)
    world.parties["party1"]._answers, refusing = willing, world.parties["party1"]._answers
    world.deal()
    world.parties["party1"]._answers = refusing
    name = world.name()
    run, ask = world.run(name)
    assert not run.stocked and not ask.stocked and run.job == ask.job != name == run.name
    for party in world.parties.values():
        assert [request.job for request in party.of("OpenJob")] == [name, run.job]
        assert [request.job for request in party.of("CloseJob")] == [name]  # the other one's is used up by that
    world.keeper.leave(name)
    assert not world.listed and world.name() != name


def test_who_is_gone_ends_the_job(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text)
    world.deal()
    world.parties["party1"]._answers = lambda method, ask: Refused("PEER_ABSENT")
    name = world.name()
    with pytest.raises(PeerAbsent):
        world.run(name)
    world.keeper.leave(name)
    assert not world.listed and world.name() != name


def test_stock_lies_with_the_first_pair(text: str, tmp_path: Path) -> None:
    """A job on other workers asks for none, and leaves what was kept for it to the next."""
    world = World(tmp_path, text)
    world.deal()
    name = world.name()
    run, ask = world.run(name, pair=1)
    assert not run.stocked and not ask.stocked and run.job == ask.job != name and name in world.listed
    world.keeper.leave(name)
    again, _ = world.run(world.name())
    assert again.stocked and again.job == name


def test_a_sharing_that_was_replaced_has_none(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text)
    world.deal(2)
    name = world.name()
    run, ask = world.run(name, share_id="6" * 32)  # replaced while it waited
    assert not ask.stocked and run.job != name
    assert world.name(share_id="6" * 32) not in world.listed and not world.listed


def test_what_one_party_does_not_lay_down(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text, lambda method, ask: Refused("LIMIT") if method == "Stock" else None)
    with pytest.raises(LimitExceeded):
        world.deal(3)
    (asked,) = world.parties["party0"].of("Stock")
    assert [request.job for request in world.parties["party0"].of("CloseJob")] == [asked.job]
    assert not world.listed and world.turns.state() == NOBODY
    for count in (0, 1001):
        with pytest.raises(LimitExceeded, match="max_deal"):
            world.deal(count)


def test_a_list_that_cannot_be_read_is_set_aside(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text)
    world.deal(2)
    (path, *_) = world.keeper._root.glob("*.json")
    path.write_bytes(b"damaged")
    again = World(tmp_path, text)
    assert len(again.keeper._kept) == 1 and len(again.listed) == 1
    assert isinstance(next(iter(again.keeper._kept.values())), Kept)


# Filling up -------------------------------------------------------------------------------------------


@pytest.fixture()
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stock_keeper, "IDLE", 0.01)
    monkeypatch.setattr(stock_keeper, "AFTER_ERROR", 0.05)
    yield


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def level(count: int) -> tuple[StockLevel, ...]:
    return (StockLevel(model="m", seq=8, count=count), StockLevel(model="absent", seq=8, count=1))


@pytest.mark.usefixtures("quick")
def test_it_fills_up_to_its_level(text: str, tmp_path: Path) -> None:
    world = World(tmp_path, text, stock=level(3))
    try:
        until(lambda: len(world.keeper._kept) == 3)
        first = world.name()
        world.run(first)
        until(lambda: len(world.keeper._kept) == 3)
        time.sleep(0.1)  # ten more looks
        assert first not in world.listed
        asked = world.parties["party0"].of("Stock")
        assert {request.client for request in asked} == {""} and len(asked) == 4  # no more than were missing
    finally:
        world.keeper.close()


@pytest.mark.usefixtures("quick")
def test_it_gives_way(text: str, tmp_path: Path) -> None:
    """Not begun while somebody is there, and given up when somebody comes."""
    under_way = threading.Event()

    def slow(method: str, _: Any) -> Any:
        if method != "Stock":
            return None
        under_way.set()
        return Future()

    turns = new_turns()
    turns.enter("job", "client/alice")
    world = World(tmp_path, text, slow, turns, stock=level(1))
    try:
        assert not under_way.wait(0.2)  # twenty looks
        turns.leave("job")
        assert under_way.wait(20)
        turns.enter("other", "client/bob")
        until(lambda: turns.state().running == ("other",))
        assert not world.listed and len(world.parties["party0"].of("CloseJob")) == 1
    finally:
        world.keeper.close()


@pytest.mark.usefixtures("quick")
def test_an_error_is_no_end(text: str, tmp_path: Path) -> None:
    tries = []

    def full(method: str, _: Any) -> Any:
        tries.append(method)
        return Refused("LIMIT") if tries.count("Stock") < 3 and method == "Stock" else willing(method, _)

    world = World(tmp_path, text, full, stock=level(1))
    try:
        until(lambda: len(world.keeper._kept) == 1)
        assert tries.count("Stock") == 3
    finally:
        world.keeper.close()


def test_a_client_that_leaves_ends_it(text: str, tmp_path: Path) -> None:
    ends: list[Callable[[], None]] = []

    def slow(method: str, _: Any) -> Any:
        if method != "Stock":
            return None
        for end in ends:
            end()
        return Future()

    world = World(tmp_path, text, slow)
    world.context = SimpleNamespace(add_callback=lambda call: ends.append(call) is None)
    with pytest.raises(ClusterError, match="the client ended the job"):
        world.deal(2)
    assert not world.listed and world.turns.state() == NOBODY

"""One call at both parties, by calls that a test ends: what comes back, what is raised, and who is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from ditto.errors import CertificateError, ClusterError, DittoError, JobMismatch, PeerLost, UnknownModel
from ditto.models import Plan
from ditto.models.description import digest_of
from ditto.names import PARTIES
from ditto.service import job_run
from ditto.service.driving import Driver
from ditto.service.job_run import JobRun
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.turns import Turns
from ditto.wire import control_pb2

Calls = dict[str, "Future[str]"]


class Broken(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, *trailing: tuple[str, str]) -> None:
        self._code, self._trailing = code, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._trailing


LOST = Broken(grpc.StatusCode.UNAVAILABLE)
CLOSED = Broken(grpc.StatusCode.FAILED_PRECONDITION, ("ditto-code", "CLUSTER"))


@pytest.fixture()
def calls() -> Calls:
    return {"party0": Future(), "party1": Future()}


@pytest.fixture()
def run(calls: Calls) -> JobRun:
    run = JobRun("job", calls, 60.0)  # type: ignore[arg-type]  # the calls themselves stand for the stubs
    run.begun = True
    return run


def both(run: JobRun, on_call: Callable[[], None] = lambda: None) -> list[Any]:
    def call(stub: Any, timeout: float) -> Any:
        assert timeout == 60.0 + job_run.GRACE
        on_call()
        return stub

    return run.both(call)


def later(*steps: Callable[[], object]) -> None:
    def take() -> None:
        for step in steps:
            time.sleep(0.05)
            step()

    threading.Thread(target=take, daemon=True).start()


def test_replies_come_in_the_order_of_the_parties(run: JobRun, calls: Calls) -> None:
    later(lambda: calls["party1"].set_result("one"), lambda: calls["party0"].set_result("zero"))
    assert both(run) == ["zero", "one"]


def test_calls_that_have_ended_at_once(run: JobRun, calls: Calls) -> None:
    for name, call in calls.items():
        call.set_result(name)
    assert both(run) == ["party0", "party1"]


@pytest.mark.parametrize("first", ["party0", "party1"])
def test_a_lost_party_says_more_than_what_the_other_makes_of_it(first: str, run: JobRun, calls: Calls) -> None:
    second = next(name for name in calls if name != first)
    later(lambda: calls[first].set_exception(CLOSED), lambda: calls[second].set_exception(LOST))
    with pytest.raises(PeerLost, match=second):
        both(run)


def test_the_other_party_is_waited_for_a_while(run: JobRun, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "PATIENCE", 0.3)
    began = time.monotonic()
    calls["party1"].set_exception(CLOSED)
    with pytest.raises(ClusterError, match="details"):
        both(run)
    assert 0.3 <= time.monotonic() - began < 10
    assert calls["party0"].cancelled()


def test_one_that_succeeds_after_the_other_failed(run: JobRun, calls: Calls) -> None:
    calls["party1"].set_exception(RuntimeError("odd"))
    later(lambda: calls["party0"].set_result("fine"))
    with pytest.raises(DittoError, match="party1: odd") as caught:
        both(run)
    assert caught.value.peer == "party1"


@pytest.mark.parametrize("moment", ["before", "between", "during"])
def test_a_client_that_goes_ends_both(moment: str, run: JobRun, calls: Calls) -> None:
    """Between: `cancel` came when no call could be found yet, and has to reach them all the same."""
    if moment == "before":
        run.cancel()
    elif moment == "during":
        later(run.cancel)
    with pytest.raises(ClusterError, match="the client ended the job"):
        both(run, run.cancel if moment == "between" else lambda: None)
    assert moment == "before" or all(call.cancelled() for call in calls.values())


# In its turn --------------------------------------------------------------------------------------


def registered(share_id: str, description: str) -> Registered:
    return Registered(model="m", share_id=share_id * 32, description=description, owner="client/alice")


def test_a_job_whose_model_changed_while_it_waited_says_so(tmp_path: Path) -> None:
    """It is not opened on a program that its client did not encode its inputs for."""
    models, line, config = RegisteredModels(tmp_path), Turns(1, 1 << 40, 9), SimpleNamespace(step_timeout_s=60.0)
    models.put(registered("a", "one"))
    ask = control_pb2.RunJobRequest(model="m", owner="client/alice", description_digest=digest_of("one"))
    pair = SimpleNamespace(stubs={}, where={})
    driver = Driver(config, line, models, lambda number: pair, SimpleNamespace())  # type: ignore[arg-type]
    line.enter("another")
    line.enter("job", "client/bob")
    events = driver.events(JobRun("job", {}, 60.0, "client/bob"), ask, None, Plan(1, 8))  # type: ignore[arg-type]
    assert next(events).queued.position == 1
    models.put(registered("b", "another"))
    line.leave("another")
    with pytest.raises(JobMismatch, match="another description; ask again"):
        next(events)


def test_an_activation_waits_for_jobs_that_are_opened_on_what_served_before(tmp_path: Path) -> None:
    """For no others: one that is opened on what serves now, or on another model."""
    models, settled = RegisteredModels(tmp_path), threading.Event()
    before, after = registered("a", "one"), registered("b", "one")
    other = before.model_copy(update={"model": "n"})
    models.put(before)
    models.put(other)

    def settle() -> None:
        models.settle(after, 60)
        settled.set()

    with models.opening("n", "client/alice"):
        with models.opening("m", "client/bob") as opened:
            assert opened == before
            models.put(after)
            threading.Thread(target=settle, daemon=True).start()
            with models.opening("m", "client/bob") as later:
                assert later == after and not settled.wait(0.2)
        assert settled.wait(10)
    with pytest.raises(UnknownModel), models.opening("nothing", "client/bob"):
        pass
    with models.opening("m", "client/bob"):
        models.settle(before, 0.1)  # it is left to itself


def test_a_revoked_server_is_not_called() -> None:
    """Its certificate is refused before there is a call: the other party's is not left behind, and a job closes."""
    made: list[Future[str]] = []

    def call(stub: Any, timeout: float) -> Any:
        if stub == "revoked":
            raise CertificateError("revoked", peer="party1")
        made.append(Future())
        return made[-1]

    run = JobRun("job", {"party0": "well", "party1": "revoked"}, 60.0)  # type: ignore[dict-item]
    with pytest.raises(CertificateError):
        run.both(call)
    assert [one.cancelled() for one in made] == [True]
    closed: list[str] = []

    def close(ask: Any, timeout: float) -> Any:
        closed.append(ask.job)
        return SimpleNamespace(exception=lambda: None)

    def refuse(ask: Any, timeout: float) -> Any:
        raise CertificateError("revoked", peer="party0")

    stubs = [SimpleNamespace(CloseJob=SimpleNamespace(future=future)) for future in (refuse, close)]
    run.stubs = dict(zip(PARTIES, stubs, strict=True))  # type: ignore[assignment]
    run.close("over")
    assert closed == ["job"]

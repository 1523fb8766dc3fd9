"""What is prepared while something else runs: in which order, within which memory, and what a failure ends with."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ditto.engine.memory import held_by_layer, reach
from ditto.errors import ClusterError, DittoError, IntegrityError, PeerLost
from ditto.models import Plan, random_model
from ditto.models.compiled import program_for
from ditto.service.ahead import Preparing, Work, works_of
from ditto.wire import control_pb2, party_pb2

MB = 1 << 20
Event = control_pb2.JobEvent


def works(*held: int) -> list[Work]:
    return [Work(party_pb2.StepRequest(layer=i), i, f"layer {i}", n) for i, n in enumerate(held)]


class Prepared:
    """What `prepare` was called for, each call let go by a test."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.called, self.go, self.broken = threading.Event(), threading.Semaphore(0), threading.Event()
        self.error: DittoError | None = None

    def __call__(self, work: Work) -> Event:
        self.calls.append(work.layer)
        self.called.set()
        assert self.go.acquire(timeout=10)
        if self.broken.is_set():
            raise ClusterError("the call was cancelled")
        if self.error:
            raise self.error
        return Event(layer=control_pb2.LayerDone(layer=work.layer))

    def break_off(self) -> None:
        self.broken.set()
        self.go.release()

    def wait(self) -> None:
        assert self.called.wait(10)
        self.called.clear()


def test_the_next_one_is_prepared_while_one_runs() -> None:
    prepare = Prepared()
    with Preparing(works(1, 1, 1, 1), 2, prepare, prepare.break_off) as preparing:
        for number in range(3):
            if not number:
                prepare.wait()
                prepare.go.release()
            assert preparing.take().layer.layer == number
            assert not prepare.called.wait(0.1)  # nothing before this one runs
            with preparing.running():
                prepare.wait()
                prepare.go.release()
                assert prepare.calls == list(range(number + 2))
    assert not prepare.broken.is_set()


@pytest.mark.parametrize(("held", "hold"), [((1, 1, 1), 0), ((3, 2, 2), 4)])
def test_what_does_not_fit_beside_waits_for_its_turn(held: tuple[int, ...], hold: int) -> None:
    """`hold` 0: in turns, whoever asks for that."""
    prepare = Prepared()
    with Preparing(works(*held), hold, prepare, prepare.break_off) as preparing:
        prepare.wait()
        prepare.go.release()
        preparing.take()
        with preparing.running():
            assert not prepare.called.wait(0.1) and prepare.calls == [0]
        prepare.wait()
        prepare.go.release()
        preparing.take()
        with preparing.running():
            ahead = prepare.called.wait(10 if hold else 0.1)  # the second and third fit together
            assert ahead == bool(hold)
        prepare.go.release()
        preparing.take()


def test_what_preparing_ended_with_is_raised_where_it_is_due() -> None:
    prepare = Prepared()
    prepare.error = PeerLost("dealer sent nothing in time", peer="dealer")
    with (
        pytest.raises(PeerLost, match="dealer sent nothing"),
        Preparing(works(1), 1, prepare, prepare.break_off) as preparing,
    ):
        prepare.go.release()
        preparing.take()


@pytest.mark.parametrize(
    ("ran", "prepared", "told"),
    [
        (ClusterError("the job was closed"), PeerLost("dealer"), "dealer"),
        (IntegrityError("changed"), PeerLost("dealer"), "changed"),
    ],
)
def test_the_more_telling_error_is_told(ran: DittoError, prepared: DittoError, told: str) -> None:
    """A party that fails to prepare closes the job: what runs meanwhile ends with that alone."""
    prepare = Prepared()
    with pytest.raises(DittoError, match=told), Preparing(works(1, 1), 2, prepare, prepare.break_off) as preparing:
        prepare.go.release()
        preparing.take()
        prepare.called.clear()
        prepare.error = prepared
        with preparing.running():
            prepare.wait()
            prepare.go.release()
            raise ran


def test_who_leaves_early_breaks_the_call_off() -> None:
    prepare = Prepared()
    with pytest.raises(ClusterError, match="left"), Preparing(works(1, 1), 2, prepare, prepare.break_off):
        prepare.wait()
        raise ClusterError("left")
    assert prepare.broken.is_set() and prepare.calls == [0]
    assert not [thread for thread in threading.enumerate() if thread.name == "preparing"]


def test_a_jobs_works() -> None:
    """Layers of the first stage, then later stages as wholes; each with what its program holds, a cache's growth in."""
    description, _, _ = random_model("gpt2-tiny", 2, 16)
    text, plan = description.text(), Plan(1, 8, tokens=3)
    found = works_of("j", text, plan)
    program = program_for(text, plan)
    assert [work.name for work in found] == [*program.layers, "token 2", "token 3"]
    assert [work.layer for work in found] == list(range(len(found)))
    assert [(work.stage, work.request.rest) for work in found[-2:]] == [(1, True), (2, True)]
    assert [work.held for work in found[:-2]] == held_by_layer(program)
    for stage in (1, 2):
        assert sum(held_by_layer(program_for(text, plan, stage))) <= found[-1].held


def bound(fits: Callable[[int], bool]) -> int:
    return next(hold for hold in range(100) if fits(hold))


def test_one_ahead_and_only_if_both_fit() -> None:
    held = [5, 7, 3]
    assert [bound(lambda hold, at=at: reach(held, at, hold) == at + 1) for at in (0, 1)] == [12, 10]  # type: ignore[misc]
    assert reach(held, 0, 1000) == 1

"""Whose turn it is: slots, memory, fairness between clients, and jobs that stand aside. No process takes part."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.errors import Busy, ClusterError
from ditto.service.job_run import Account, JobRun
from ditto.service.room import Room
from ditto.service.turns import ASIDE, PASSES, Need, State, Turns

PLENTY = 1 << 40


def need(party: int, waiting: int = 0, dealer: int = 0) -> Need:
    return Need(party, waiting, dealer)


# What clients are told ----------------------------------------------------------------------------


def test_the_queue_says_when_to_try_again() -> None:
    line = Turns(1, PLENTY, 3, each=2, pace=lambda: 10.0)
    line.enter("a", "alice")
    line.enter("b", "alice")
    with pytest.raises(Busy, match=r"alice has 2 jobs .*max_jobs.*; try again in 10 s"):
        line.enter("c", "alice")
    line.enter("d", "bob")
    line.enter("e", "carol")
    with pytest.raises(Busy, match=r"queue_limit.*; try again in 20 s") as caught:
        line.enter("f", "dave")
    assert caught.value.retry_s == 20 and line.state() == State(("a",), 3, 0)
    assert [line.place(name) for name in "deb"] == [1, 2, 3]  # who runs something comes after who does not
    line.leave("a")
    line.enter("c", "alice")
    assert [line.place(name) for name in "debc"] == [0, 1, 2, 3]


def test_jobs_that_overlap_share_their_seconds() -> None:
    account = Account()
    for _ in range(4):
        account.add("done", {"online": 3.0, "offline": 1.0}, 8.0, beside=3)
    assert account.pace() == 2.0 and account.state().online_seconds == 3.0


# Slots and clients --------------------------------------------------------------------------------


def test_turns_go_round_by_client() -> None:
    line = Turns(2, PLENTY, 99)
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        line.enter(name, name[0])
    assert line.state().running == ("a1", "a2")
    order = []
    while names := line.state().running:
        order.append(names[0])
        line.leave(names[0])
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


def test_places_are_those_of_the_turns_to_come() -> None:
    line = Turns(1, PLENTY, 99)
    for name in ("a1", "a2", "b1", "a3", "c1", "b2"):
        line.enter(name, name[0])
    placed = sorted((line.place(name), name) for name in ("a2", "b1", "a3", "c1", "b2"))
    assert [place for place, _ in placed] == [1, 2, 3, 4, 5]
    for _, name in placed:
        line.leave(line.state().running[0])
        assert line.state().running == (name,)


def test_who_asks_seldom_does_not_pass_those_who_wait_for_longer() -> None:
    line = Turns(1, PLENTY, 99)
    for name in ("a1", "b1", "a2", "c1"):
        line.enter(name, name[0])
    line.leave("a1")
    line.leave("b1")
    line.enter("b2", "b")
    line.leave("c1")
    assert line.state().running == ("a2",)


@pytest.mark.parametrize("slots", [1, 4])
def test_under_equal_load_no_client_waits_twice_as_long_as_another(slots: int) -> None:
    """Sixteen clients with one to four jobs each under way, by a clock of their own: the same pace of each for as much
    as it asks. Compared are clients with as many jobs under way."""
    line, draws = Turns(slots, PLENTY, 999), random.Random(1)
    clients = [f"{i:02}" for i in range(16)]
    asked: dict[str, float] = {}
    seconds = defaultdict[str, list[float]](list)
    ends: list[tuple[float, str]] = []
    now, number = 0.0, 0

    def ask(client: str) -> None:
        nonlocal number
        name, number = f"{client} {number}", number + 1
        asked[name] = now
        line.enter(name, client)

    for client in clients:
        for _ in range(1 + int(client) % 4):
            ask(client)
    for _ in range(2000):
        ends += [(now + draws.uniform(0.5, 1.5), n) for n in line.state().running if n not in {n for _, n in ends}]
        now, ended = min(ends)
        ends.remove((now, ended))
        line.leave(ended)
        client = ended.split()[0]
        seconds[client].append(now - asked.pop(ended))
        ask(client)
    p99 = {client: sorted(of)[int(0.99 * len(of))] for client, of in seconds.items()}
    served = [len(of) for of in seconds.values()]
    assert max(served) <= 1.1 * min(served)  # turns go round, whatever waits behind
    for load in range(4):
        alike = [p99[client] for client in clients if int(client) % 4 == load]
        assert max(alike) < 2 * min(alike)


# Memory -------------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_and_is_not_passed_for_ever() -> None:
    line = Turns(4, 100, 999)
    line.enter("small 0", "s", need(60))
    line.enter("large", "l", need(100))
    passed = 0
    for i in range(1, 99):
        line.enter(f"small {i}", f"s{i}", need(40))
        if line.place(f"small {i}"):
            break
        passed += 1
        line.leave(f"small {i}")
    assert passed == PASSES and line.place("large") == 1
    line.leave("small 0")
    assert line.state() == State(("large",), 1, 0)
    line.leave("large")
    assert line.place(f"small {i}") == 0


def test_the_dealers_memory_counts_too() -> None:
    line = Turns(4, 100, 99)
    line.enter("a", "a", need(1, dealer=60))
    line.enter("b", "b", need(1, dealer=60))
    line.enter("c", "c", need(1, dealer=40))
    assert line.state().running == ("a", "c")


def test_what_is_larger_than_all_there_is_runs_alone() -> None:
    """An activation: jobs of that size are refused before they ask for a turn."""
    line = Turns(4, 100, 99)
    line.enter("a", "a", need(1))
    line.enter("b", "b", need(1000), alone=True)
    assert line.place("b") == 1
    line.leave("a")
    line.enter("c", "c", need(1))
    assert line.state().running == ("b",)


def test_activations_run_beside_jobs_and_not_beside_each_other() -> None:
    line = Turns(4, PLENTY, 99)
    for name in ("x", "y"):
        line.enter(name, name, alone=True)
    line.enter("a", "a")
    assert line.state().running == ("x", "a") and line.place("y") == 1
    line.leave("x")
    assert line.state().running == ("a", "y")


# Standing aside -----------------------------------------------------------------------------------


def test_who_stands_aside_comes_back_before_those_without_a_turn() -> None:
    line = Turns(1, PLENTY, 10)
    for name, who in (("a", "alice"), ("b", "bob"), ("d", "dave"), *((w, w) for w in "efgh"), ("c", "alice")):
        line.enter(name, who)
    assert line.step_aside("a") and line.state() == State(("b",), 6, 1)
    assert line.step_aside("b")
    for name in "defgh":
        assert line.place(name) == "defgh".index(name)
    line.leave("d")
    assert line.step_aside("e") and line.step_aside("f")
    assert not line.step_aside("g")  # four stand aside
    line.come_back("b")
    assert [line.place(name) for name in "gbhc"] == [0, 1, 2, 3]
    for name in "gb":
        line.leave(name)
    line.come_back("f")
    assert [line.place(name) for name in "hfc"] == [0, 1, 2]
    for name in "hf":
        line.leave(name)
    with pytest.raises(ClusterError, match="another job of this client"):
        line.enter("i", "ida")
        line.step_aside("c")
    line.leave("i")
    assert not line.step_aside("c")  # nobody waits


def test_none_that_stands_aside_waits_for_another() -> None:
    line = Turns(1, 100, 99)
    for name in "abcd":
        line.enter(name, name, need(70 if name < "c" else 40, 30, 10))
    assert line.step_aside("a") and line.step_aside("b")  # 70 and what the other keeps
    assert line.place("c") == 0 and not line.step_aside("c")  # 30 of each of two others would be too much
    line.come_back("a")
    line.come_back("b")
    line.leave("c")
    assert line.place("a") == 0 and line.place("b") == 1


def test_what_stands_aside_holds_up_only_who_has_no_room() -> None:
    line = Turns(2, 100, 99)
    line.enter("a", "a", need(60, 30))
    line.enter("b", "b", need(40, 10))
    assert not line.holds_up("a")
    line.enter("c", "c", need(60))
    assert line.holds_up("a") and line.holds_up("b")  # they run, and somebody waits
    assert line.step_aside("a") and line.place("c") == 1
    assert line.holds_up("a")  # c would have room without it
    line.enter("d", "d", need(20))
    assert line.place("d") == 0 and not line.holds_up("a")  # both slots are taken
    line.leave("b")
    line.leave("d")
    assert line.place("c") == 0
    line.enter("e", "e", need(50))
    assert not line.holds_up("a")  # e has no room without it either


def test_a_slow_client_gives_way_to_others() -> None:
    line = Turns(1, PLENTY, 10)
    run, other = JobRun("job", {}, 60.0), JobRun("other", {}, 60.0)
    line.enter("job", "alice")
    with pytest.raises(ClusterError, match="in time"):
        run.await_client(line, 0.1, 0.1, 0.6)  # nobody waits
    line.enter("other", "bob")
    turn: Future[None] = Future()

    def wait() -> None:
        run.await_client(line, 0.2, 60.0, 60.0)
        turn.set_result(None)

    threading.Thread(target=wait, daemon=True).start()
    other.wait_turn(line)
    run.started.set()
    time.sleep(0.3)
    assert not turn.done()  # its inputs are there, and the other job runs
    line.leave("other")
    turn.result(5)
    assert line.state() == State(("job",), 0, 0)


def test_a_slow_client_ends_where_others_stand_aside_already() -> None:
    line = Turns(1, PLENTY, 10)
    for name in "abcdef":
        line.enter(name, name)
    assert all(line.step_aside(name) for name in "abcd")
    with pytest.raises(ClusterError, match=r"others wait \(start_timeout_s\)"):
        JobRun("e", {}, 60.0).await_client(line, 0.1, 0.3, 60.0)


def test_a_slow_client_ends_where_there_is_no_room_beside_what_it_keeps() -> None:
    line = Turns(1, 100, 10)
    line.enter("a", "alice", need(60, 30))
    line.enter("b", "bob", need(80))
    with pytest.raises(ClusterError, match=r"others wait \(start_timeout_s\)"):
        JobRun("a", {}, 60.0).await_client(line, 0.1, 0.3, 60.0)
    assert line.state() == State((), 1, 1)
    line.leave("a")
    assert line.place("b") == 0


# Whatever happens ---------------------------------------------------------------------------------

JOBS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 100), st.integers(0, 100), st.integers(0, 100), st.booleans()),
    min_size=1, max_size=20,
)  # fmt: skip


@given(slots=st.integers(1, 4), jobs=JOBS, steps=st.lists(st.integers(0, 5), max_size=60))
@settings(max_examples=150, deadline=None)
def test_never_more_than_there_is_and_nobody_waits_for_ever(
    slots: int, jobs: list[tuple[int, int, int, int, bool]], steps: list[int]
) -> None:
    """Jobs come, end, stand aside and come back in any order: the sum stays within the memory at every moment, a
    client's jobs get their turns in order, and once no more come every one gets its turn."""
    line = Turns(slots, 100, 999)
    needs = {f"{n}": need(party, min(waiting, party), dealer) for n, (_, party, waiting, dealer, _) in enumerate(jobs)}
    alone = {f"{n}" for n, job in enumerate(jobs) if job[-1]}
    who = {f"{n}": f"client {job[0]}" for n, job in enumerate(jobs)}
    to_come, aside, back, began = deque(needs), list[str](), list[str](), list[str]()

    def check() -> None:
        running = line.state().running
        back[:] = [name for name in back if name not in running]
        kept = [*aside, *back]
        assert len(running) <= slots and len(alone.intersection(running)) <= 1 and len(aside) <= ASIDE
        assert sum(needs[n].party for n in running) + sum(needs[n].waiting for n in kept) <= 100
        assert sum(needs[n].dealer for n in (*running, *kept)) <= 100
        began.extend(name for name in running if name not in began)
        for client in who.values():
            turns = [int(name) for name in began if who[name] == client]
            assert turns == sorted(turns)

    def step(kind: int) -> None:
        running = line.state().running
        if kind <= 1 and to_come:
            name = to_come.popleft()
            line.enter(name, who[name], needs[name], name in alone)
        elif kind == 2 and running:
            line.leave(running[0])
        elif kind == 3 and running:
            try:
                if line.step_aside(running[-1]):
                    aside.append(running[-1])
            except ClusterError:
                assert who[running[-1]] in [who[name] for name in aside]
        elif aside:
            back.append(aside.pop(0))
            line.come_back(back[-1])

    for kind in steps:
        step(kind)
        check()
    while to_come or aside:
        step(0 if to_come else 4)
        check()
    for _ in needs:  # each end lets somebody run: none of those that are left waits for anything else
        if not (running := line.state().running):
            break
        line.leave(running[0])
        check()
    assert line.state() == State((), 0, 0) and len(began) == len(needs)


# A server's own limit -----------------------------------------------------------------------------


def test_a_server_takes_no_more_than_its_own_limit() -> None:
    room = Room(100 << 20, "party0")
    room.open("a", 30 << 20)
    room.change("a", 60 << 20)
    with pytest.raises(
        Busy, match=r"^party0: .* 50 MB, beside others that hold 60; it takes at most 100 .*\(jobs_mb\)"
    ):
        room.open("b", 50 << 20, wait=0)
    with pytest.raises(Busy):
        room.change("a", 101 << 20, wait=0)
    room.open("b", 40 << 20, wait=0)
    assert room.taken == 100 << 20 and not room.wait_for("c", 1, wait=0)
    threading.Timer(0.1, room.give_back, ["a"]).start()
    room.open("c", 60 << 20, wait=10)
    room.change("a", 60 << 20, wait=0)  # its last step began before it was closed
    for name in "abc":
        room.give_back(name)
    assert room.taken == 0


def test_a_job_that_ends_while_it_waits_for_room_holds_nothing() -> None:
    room, ended = Room(100, "party0"), threading.Event()
    room.open("a", 50)
    room.open("b", 50)

    def step() -> None:
        room.change("a", 60, wait=10)
        ended.set()

    threading.Thread(target=step, daemon=True).start()
    time.sleep(0.1)
    room.give_back("a")
    room.give_back("b")
    assert ended.wait(10) and room.taken == 0

"""A short part of `make soak`: a few jobs, and one of most things that can happen to a process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import asking, chaos, servers, soak
from benchmarks.traced_server import RECORD

ROOT = Path(__file__).parents[1]


def test_every_job_ends_and_nothing_is_left() -> None:
    """Kill -9, SIGSTOP with and without an end, a killed client, a clock that jumps, a full disk; exit code 0 says that
    nothing was breached."""
    options = {"--jobs": 6, "--faults": 6, "--quiet": 3, "--connect": 20}
    command = [sys.executable, "-m", "benchmarks.soak", "--json", *(str(x) for pair in options.items() for x in pair)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0 and found["breaches"] == [], (found["breaches"], done.stderr)
    assert {fault["kind"] for fault in found["faults"]} == {"kill", "pause", "client", "clock", "disk", "freeze, kill"}
    assert sum(of["jobs"] for of in found["outcomes"].values()) == 6
    assert found["keys_expanded"] > 1000 and found["job_identifiers"] > 0


def test_a_plan_is_its_seeds() -> None:
    plans = [chaos.plan(random.Random(seed), 200, 100, 3) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert {fault.kind for fault in plans[0]} == set(chaos.KINDS)
    todo = soak.tasks(random.Random(1), 200, plans[0])
    assert all("share" in todo[fault.after] for fault in plans[0] if fault.kind == "disk")


def judged(**outcome: Any) -> list[str]:
    run = soak.Run(outcomes={0: {"seconds": 0.1, "message": "", **outcome}}, spans={0: soak.Span(1.0, 2.0)})
    run.faults = [(chaos.Fault(0, 0.0, "kill", ("party0",), 0.0), soak.Span(*outcome.get("fault", (0.0, 1.5))))]
    return soak.judged(run, [{"n": 0, "model": "bert", "seed": 0}])


def test_what_a_job_must_not_do() -> None:
    assert judged(outcome="right") == judged(outcome="KILLED") == judged(outcome="PEER_LOST") == []
    for outcome in ("wrong", "HANGS", "DIED", "INTERNAL", "ValueError"):
        assert judged(outcome=outcome)
    assert "nothing happened" in judged(outcome="PEER_LOST", fault=(2.5, 3.0))[0]
    assert soak.judged(soak.Run(), [{"n": 0, "model": "bert", "seed": 0}]) == ["job 0 (bert) has no end"]
    assert soak.judged(soak.Run(jobs=["a" * 32] * 2), []) == ["job identifier aaaaaaaa twice"]


def test_a_server_that_keeps_something_is_named() -> None:
    few = dict.fromkeys(servers.SERVERS, servers.Usage(300.0, 20, 16))
    assert soak.grown(few, few) == []
    for more in (servers.Usage(400.0, 20, 16), servers.Usage(300.0, 90, 16), servers.Usage(300.0, 20, 60)):
        assert len(soak.grown(few, few | {"party1": more})) == 1


def test_a_key_that_is_used_twice_is_found(tmp_path: Path) -> None:
    def record(name: str, *keys: tuple[str, int, int]) -> None:
        data = b"".join(RECORD.pack(kind.encode(), bytes([key]) * 8, bytes([of]) * 8) for kind, key, of in keys)
        (tmp_path / name).write_bytes(data + b"cut")

    record("dealer.1", ("step", 1, 1), ("step", 2, 2), ("weight", 3, 3), ("weight", 3, 3))
    record("party0.2", ("step", 1, 1), ("output", 4, 4))
    record("party1.3", ("step", 2, 2), ("output", 4, 4))
    assert servers.used_twice(tmp_path) == (8, [])
    for name, again in (("dealer.9", "step"), ("party0.9", "output")):
        record(name, (again, 1 if again == "step" else 4, 1 if again == "step" else 4))  # after a restart
        assert len(servers.used_twice(tmp_path)[1]) == 1
        (tmp_path / name).unlink()
    record("party1.9", ("step", 1, 1))
    assert "both parties" in servers.used_twice(tmp_path)[1][0]
    record("party1.9", ("weight", 3, 9))
    assert "2 names" in servers.used_twice(tmp_path)[1][0]


@pytest.mark.parametrize("name", asking.KINDS)
def test_a_wrong_answer_is_not_right(name: str) -> None:
    question = asking.Question(name, 1)
    answers = question.answers()
    assert question.right(answers) and len(answers) == question.plan.stages
    frac = 20 if name == "gpt2" else 8
    for stage, outputs in enumerate(answers):
        (key,) = outputs
        off = outputs[key].clone()
        off.view(-1)[0] += int(2 * asking.CLOSE[name] * 2**frac)
        assert not question.right([*answers[:stage], {key: off}, *answers[stage + 1 :]])
    assert Counter(asking.MODELS.values()).keys() == asking.KINDS.keys()

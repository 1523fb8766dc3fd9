"""No stream is expanded twice by real servers that are stopped, killed in a job and started again on their files."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import small_shapes

from ditto.client import together
from ditto.client.client import Client
from ditto.client.generation import generate
from ditto.client.local_cluster import Cluster, embedded
from ditto.client.sampling import Sampler
from ditto.errors import PeerLost
from ditto.models import Description, Plan, encode_inputs, random_model
from ditto.models.tokenizer import Batch, Prompts
from ditto.names import PARTIES, SERVERS
from ditto.net.certs import Authority
from ditto.net.config import ClientConfig, Tls
from ditto.net.identity import Identity

SEQ, TOKENS = 8, 3
TEXT = Plan(1, SEQ, TOKENS, guard=True)
Line = dict[str, Any]


def twice(lines: list[Line]) -> list[tuple[Any, ...]]:
    """What was expanded more often than it has holders, whichever process did it, or derived under two names.

    A step's key has the dealer and one party; an output's and a guard's each party; a share's its party. A weight's
    mask is the same for all jobs and after every start: its key may only have one name.
    """
    names: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    kinds: dict[str, str] = {}
    times: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["event"] == "derived":
            names[line["key"]].add(tuple(line["context"]))
            kinds[line["key"]] = line["kind"]
        else:
            holder = line["role"]
            if holder != "dealer" and kinds.get(line["key"]) == "step":
                holder = "parties"  # one of them has the seed
            times[line["key"], holder] += 1
    found: list[tuple[Any, ...]] = [("names", *sorted(of)) for of in names.values() if len(of) > 1]
    return found + [
        (kinds.get(key, "other"), holder, count)
        for (key, holder), count in times.items()
        if count > 1 and kinds.get(key) != "weight"
    ]


class World:
    """A recorded cluster, two clients, and a model of each that both may ask."""

    def __init__(self, cluster: Cluster, records: Path) -> None:
        self.cluster, self._records = cluster, records
        self.clients = {name: self._client(name) for name in ("alice", "bob")}
        self.models: dict[str, Description] = {}
        for (owner, config), shape in zip(self.clients.items(), ("bert-tiny", "gpt2-tiny"), strict=True):
            description, weights, _ = random_model(shape, 1, SEQ)
            self.models[owner] = description.model_copy(update={"name": f"of-{owner}"})
            with Client(config) as client:
                client.share_model(self.models[owner], weights)
                client.grant_model(f"of-{owner}", next(name for name in self.clients if name != owner))

    def _client(self, name: str) -> ClientConfig:
        config, certs = self.cluster.client_config(), self.cluster.certs
        stem = certs / f"client-{name}"
        Authority(certs).issue(Identity("client", name), [], stem)
        tls = Tls(ca=certs / "ca.pem", cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key"))
        return config.model_copy(update={"tls": tls})

    def ask(self, name: str, meet: threading.Barrier | None = None) -> list[bool]:
        """One job on each model: an encoder's, and a generating one in whose middle it meets others. Which of them took
        what was in stock."""
        zero = torch.zeros((1, SEQ), dtype=torch.long)

        def on_token(_: Any) -> bool:
            if meet is not None:
                meet.wait()
            return True

        bert, gpt2 = self.models.values()
        with Client(self.clients[name]) as client:
            question = Batch(zero, zero, zero + 1)
            one = client.infer(bert.name, lambda program: encode_inputs(bert, program, question), 1, SEQ, guard=True)
            other = generate(client, gpt2, Prompts(zero, [SEQ]), TEXT, Sampler(), on_token=on_token)
        return [one.report["stock"], other.report["stock"]]

    def deal(self, name: str, count: int) -> None:
        """For so many of these asks."""
        bert, gpt2 = self.models.values()
        with Client(self.clients[name]) as client:
            for model, plan in ((bert, Plan(1, SEQ, guard=True)), (gpt2, TEXT)):
                assert client.deal(model.name, plan, count)["done"] == count

    def ask_at_once(self, kill: tuple[str, ...] = ()) -> list[BaseException | None]:
        """Both clients; in the middle of their generating jobs servers are killed. How it ended for each."""

        def end() -> None:
            running = {p.role: psutil.Process(p.pid) for p in self.cluster.status() if p.role in kill}
            for process in running.values():
                process.kill()
            assert not psutil.wait_procs(running.values(), 20)[1]

        meet = threading.Barrier(len(self.clients), end, timeout=60)
        with ThreadPoolExecutor() as many:
            asked = [many.submit(self.ask, name, meet) for name in self.clients]
        return [job.exception() for job in asked]

    def stop(self, *roles: str) -> None:
        """In order, as a supervisor would."""
        pids = {p.role: p.pid for p in self.cluster.status()}
        running = [psutil.Process(pids[role]) for role in roles]
        for process in running:
            process.terminate()
        assert not psutil.wait_procs(running, 20)[1]

    def lines(self) -> list[Line]:
        """Of all processes; a derivation before the expansion of its key."""
        texts = [line for path in sorted(self._records.iterdir()) for line in path.read_text().splitlines()]
        return sorted(map(json.loads, texts), key=lambda line: line["event"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    records = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch, SEQ, "bert-tiny", "gpt2-tiny")
        patch.setattr(together, "MODULES", dict.fromkeys(SERVERS, "recorded"))
        tests = Path(__file__).parent
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tests), str(tests.parent)]))
        patch.setenv("DITTO_RECORD", str(records))
        with embedded() as cluster:
            yield World(cluster, records)


def test_every_key_is_fresh_over_restarts(world: World) -> None:
    """Both clients on both models at once; from stock; dealer and parties stopped and started; dealer and a party
    killed in the middle of two jobs from stock, whose clients are told so; more."""
    assert world.ask_at_once() == [None, None]
    world.deal("alice", 4)
    assert world.ask("bob") == [True, True]
    world.stop("dealer", *PARTIES)
    world.cluster.up()
    assert world.ask("alice") == [True, True]
    lost = world.ask_at_once(kill=("dealer", "party1"))
    assert all(isinstance(error, PeerLost) and error.peer in ("dealer", "party1") for error in lost), lost
    world.cluster.up()
    assert world.ask("bob") == [False, False]  # there are no more
    lines = world.lines()
    assert not twice(lines)

    processes = {line["role"]: set() for line in lines}
    kinds = Counter(line["kind"] for line in lines if line["event"] == "derived")
    assert set(processes) == {"dealer", "party0", "party1"}
    seeds = {line["context"][0] for line in lines if line.get("kind") == "step"}
    assert len(seeds) == 2 * 14  # a seed for each party and job, the two that were killed included
    assert kinds["step"] > 500 and kinds["output"] and kinds["guard"] and kinds["share"]
    # weights' masks come again after a start, and under their own names
    masks = Counter(line["key"] for line in lines if line.get("kind") == "weight")
    assert masks and min(masks.values()) > 2


def test_a_stream_that_came_again_would_be_seen(world: World) -> None:
    """The instrument: what one process did of a job, as if another one, later, had done it again."""
    world.ask("alice")
    lines = world.lines()
    for kind in ("step", "output", "guard", "share"):
        key = next(line["key"] for line in lines if line.get("kind") == kind)
        again = next(line for line in lines if line["event"] == "expanded" and line["key"] == key)
        assert [found[0] for found in twice([*lines, again])] == [kind]
    named = next(line for line in lines if line.get("kind") == "weight")
    other = named | {"context": [*named["context"][:-1], "another"]}
    assert [found[0] for found in twice([*lines, other])] == ["names"]

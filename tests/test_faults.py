"""Faults between every pair that talks: a right answer or a named error in time, and the next job is served.

One cluster with short deadlines. Between each caller and each server that it calls lies a wire (tests/proxy.py), later
a middlebox behind it. Where a fault strikes is read off a job without one: halfway through what the pair then said.
With DITTO_TELL_FAULTS=FILE every fault, how its job ended and after how many seconds is appended there.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from proxy import Fault, Middlebox, Way, Wire
from test_admission import SEQ, question, small_model

from ditto.client import local_cluster
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster
from ditto.engine.plain import run_plain
from ditto.errors import BadShare, DittoError, IntegrityError, PeerAbsent, PeerLost
from ditto.models import Plan, compile_stage, encode_inputs
from ditto.names import SERVERS
from ditto.net.config import ClientConfig, Tls
from ditto.net.transport import connect, open_channel
from ditto.presets import preset_of

CALLS = {
    "client": ("coordinator", "party0", "party1"),
    "coordinator": ("party0", "party1", "dealer"),
    "party0": ("dealer",),
    "party1": ("dealer", "party0"),
}
PAIRS = [(caller, server) for caller, servers in CALLS.items() for server in servers]
SHORT = {"connect_timeout_s": 2.0, "silence_s": 2.0, "step_timeout_s": 3.0, "idle_timeout_s": 3.0}
# One deadline of a call after another may pass before a job ends: the wait for an answer, the pause after it. Not
# derived: the rest is a busy machine.
DEADLINE = 2 * max(SHORT.values()) + 4.0
FEW = 20  # threads or descriptors that a process may have more than after its first jobs; not derived: pools and
# gRPC's own come and go, and many more jobs than this failed
Pair = tuple[str, str]
WAYS: tuple[Way, Way] = ("up", "down")


# Both directions of each kind of pair, and one of the pair that is like another.
HALF_OPEN: list[tuple[Pair, Way]] = [
    (("client", "coordinator"), "up"),
    (("client", "coordinator"), "down"),
    (("client", "party0"), "up"),
    (("client", "party1"), "down"),
    (("coordinator", "party0"), "up"),
    (("coordinator", "party1"), "down"),
    (("coordinator", "dealer"), "down"),
    (("party0", "dealer"), "up"),
    (("party1", "dealer"), "down"),
    (("party1", "party0"), "up"),
    (("party1", "party0"), "down"),
]


class Ended(NamedTuple):
    error: DittoError | None
    seconds: float


class World:
    """The cluster, what lies between its processes, and the one question that is asked."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        ports = local_cluster._free_ports()
        cluster.configure(ports=ports)
        self.wires = {(caller, server): Wire(f"127.0.0.1:{ports[server]}") for caller, server in PAIRS}
        self.boxes: dict[Pair, Middlebox] = {}
        self.ports = ports
        for role in SERVERS:
            path = cluster.config_path(role)
            config = yaml.safe_load(path.read_text()) | SHORT
            config["peers"] |= {server: self.wires[role, server].address for server in CALLS.get(role, ())}
            path.write_text(yaml.safe_dump(config))
        cluster.up()
        config = cluster.client_config()
        peers = config.peers.model_copy(update={s: self.wires["client", s].address for s in CALLS["client"]})
        self.config: ClientConfig = config.model_copy(update={**SHORT, "peers": peers})
        self.description, weights = small_model()
        with Client(self.config) as client:
            client.share_model(self.description, weights)
        program = compile_stage(self.description, Plan(1, SEQ))
        self.before: dict[str, dict[str, int]] = {}
        self.right = run_plain(program, encode_inputs(self.description, program, question()), weights)

    def tls(self, role: str) -> Tls:
        certs = self.cluster.certs
        return Tls(ca=certs / "ca.pem", cert=certs / f"{role}.pem", key=certs / f"{role}.key")

    def terminate_tls(self) -> None:
        """From here on a middlebox lies behind each wire."""
        for caller, server in PAIRS:
            target = f"127.0.0.1:{self.ports[server]}"
            box = self.boxes[caller, server] = Middlebox(target, server, self.tls(server), self.tls(caller))
            self.wires[caller, server].target = box.address
            self.wires[caller, server].drop()

    def ask(self, on_event: Callable[[dict[str, Any]], None] | None = None) -> None:
        """One job, whose answer is checked. Raises DittoError."""
        with Client(self.config) as client:
            found = client.infer("small", lambda p: encode_inputs(self.description, p, question()), 1, SEQ, on_event)
        assert found.outputs.keys() == self.right.keys()
        gap = max(int((found.outputs[name] - self.right[name]).abs().max()) for name in self.right)
        assert gap <= preset_of("ditto").ulp, f"a wrong answer: {gap} units off"

    def try_ask(self) -> Ended:
        began = time.monotonic()
        try:
            self.ask()
        except DittoError as error:
            return Ended(error, time.monotonic() - began)
        return Ended(None, time.monotonic() - began)

    def recovered(self) -> None:
        """The next jobs are served, without a restart; a caller may need its connection back first."""
        until = time.monotonic() + DEADLINE
        while (ended := self.try_ask()).error is not None:
            assert isinstance(ended.error, (PeerAbsent, PeerLost)), repr(ended.error)
            assert time.monotonic() < until, repr(ended.error)
            time.sleep(0.1)

    def held(self) -> dict[str, dict[str, int]]:
        """Threads and descriptors of each server."""
        servers = {p.role: psutil.Process(p.pid) for p in self.cluster.status() if p.pid}
        return {role: {"threads": p.num_threads(), "descriptors": p.num_fds()} for role, p in servers.items()}

    def grown(self) -> dict[str, dict[str, int]]:
        """What a server has FEW more of than at first."""
        now = self.held()
        assert now.keys() == self.before.keys()  # nobody ended
        more = {role: {k: n - self.before[role][k] for k, n in counts.items()} for role, counts in now.items()}
        return {role: counts for role, counts in more.items() if max(counts.values()) > FEW}

    def jobs(self, event: str = "job started") -> Counter[str]:
        """How many lines of a kind each server has in its log."""
        found: Counter[str] = Counter()
        for role in SERVERS:
            lines = (self.cluster.logs / f"{role}.log").read_text().splitlines()
            found[role] = sum(json.loads(line)["event"] == event for line in lines if line.startswith("{"))
        return found

    def left_open(self) -> Counter[str]:
        """Jobs that a server began and did not end."""
        return self.jobs() - self.jobs("job ended")

    def heal(self) -> None:
        """End what is under way. Connections through a faulty wire end, too."""
        for faulty in (*self.wires.values(), *self.boxes.values()):
            faulty.heal()

    def close(self) -> None:
        for wire in self.wires.values():
            wire.close()
        for box in self.boxes.values():
            box.close()
        self.cluster.down()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # what the middleboxes run into is theirs
    cluster = Cluster(tmp_path_factory.mktemp("faults"))
    try:
        found = World(cluster)
        found.ask()
        found.before = found.held()
        try:
            yield found
        finally:
            found.close()
    finally:
        cluster.down()


@pytest.fixture(autouse=True)
def healed(world: World) -> Iterator[None]:
    """A test that fails leaves no fault to the next one."""
    yield
    world.heal()


Place = dict[tuple[Pair, Way], int]


@pytest.fixture(scope="module")
def halfway(world: World) -> Place:
    """After how many bytes of a job each pair is in the midst of it, in each direction: two fifths of them, since
    servers are connected already; a client connects first, so for it what had passed when the job had its inputs, but
    for the last of them. Pings make a few bytes more or less."""
    for wire in world.wires.values():
        wire.passed.clear()
    begun: Place = {}

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "accepted":
            begun.update({(pair, way): wire.passed[way] for pair, wire in world.wires.items() for way in WAYS})

    world.ask(note)
    passed = {(pair, way): wire.passed[way] * 2 // 5 for pair, wire in world.wires.items() for way in WAYS}
    passed |= {(("coordinator", "dealer"), way): 10 for way in WAYS}  # a health check, hardly more than pings are
    return passed | {
        (pair, way): begun[pair, way] - (150 if way == "up" else 0) for pair, way in passed if pair[0] == "client"
    }


def failed(world: World, pair: Pair, fault: Fault, kinds: tuple[type[DittoError], ...]) -> DittoError | None:
    """How a job under the fault ends; then the fault is gone."""
    ended = world.try_ask()
    assert fault.struck.is_set()
    assert ended.seconds < DEADLINE
    world.heal()
    if path := os.environ.get("DITTO_TELL_FAULTS"):
        with open(path, "a") as file:
            file.write(f"{ids(pair)} {fault.kind} {fault.method} {fault.way}: {ended.seconds:.2f} s {ended.error!r}\n")
    if ended.error is not None:
        assert isinstance(ended.error, kinds), repr(ended.error)
        assert ended.error.peer in pair and ended.error.peer != "client", f"{ended.error.peer}: {ended.error!r}"
    return ended.error


def ids(value: Any) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)


# On the wire -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delay", "slow"])
def test_slow_everywhere(kind: str, world: World) -> None:
    """Every piece of every pair late, or at some kB a second: the answer comes, and is right."""
    faults = [
        wire.set(Fault(kind, "down", rate=400e3 if "party" in caller and server == "dealer" else 16e3))
        for (caller, server), wire in world.wires.items()
    ]
    world.ask()
    world.heal()
    assert all(fault.struck.is_set() for fault in faults)
    world.recovered()


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_a_broken_connection(pair: Pair, world: World, halfway: Place) -> None:
    """It ends by a reset, or properly, or in the middle of a record; or a byte of it changes, which TLS finds. Who has
    all that it needs by then answers."""
    for kind in ("rst", "fin", "cut", "corrupt"):
        fault = world.wires[pair].set(Fault(kind, "down", halfway[pair, "down"]))
        failed(world, pair, fault, (PeerLost, PeerAbsent, IntegrityError))
    world.recovered()


@pytest.mark.parametrize("way", WAYS)
def test_a_dead_connection_is_given_up(way: Way, world: World) -> None:
    """By its silence: the call's own deadline is far away."""
    wire, tls = world.wires["client", "coordinator"], world.config.tls
    with open_channel(wire.address, "coordinator", tls, "client", silence_s=SHORT["silence_s"]) as channel:
        connect(channel, "coordinator", 5)
        wire.set(Fault("half-open", way))
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("pair", "way"), HALF_OPEN, ids=ids)
def test_half_open(pair: Pair, way: Way, world: World, halfway: Place) -> None:
    """A connection that carries nothing any more, in one direction, and does not end."""
    fault = world.wires[pair].set(Fault("half-open", way, halfway[pair, way]))
    assert failed(world, pair, fault, (PeerLost, PeerAbsent)) is not None
    world.recovered()


@pytest.mark.parametrize("pair", [("client", "coordinator"), ("party1", "dealer"), ("party1", "party0")], ids=ids)
def test_too_slow(pair: Pair, world: World, halfway: Place) -> None:
    """A reader that takes 50 bytes a second does not keep its job's deadline."""
    fault = world.wires[pair].set(Fault("slow", "down", halfway[pair, "down"], rate=50))
    assert failed(world, pair, fault, (PeerLost, PeerAbsent)) is not None
    world.recovered()


# Behind TLS ------------------------------------------------------------------------------------------

Count = dict[tuple[Pair, str, Way], int]


@pytest.fixture(scope="module")
def boxed(world: World) -> Count:
    """How many messages of each method a job has in each direction, through middleboxes."""
    world.terminate_tls()
    world.recovered()
    for box in world.boxes.values():
        box.seen.clear()
    world.ask()
    return {(pair, *key): count for pair, box in world.boxes.items() for key, count in box.seen.items()}


STREAMS: list[tuple[Pair, str, Way]] = [
    (("client", "coordinator"), "RunJob", "down"),
    (("client", "party1"), "PutInput", "up"),
    (("client", "party0"), "FetchOutput", "down"),
    (("party0", "dealer"), "Correlations", "down"),
    (("party1", "dealer"), "Correlations", "down"),
    (("party1", "party0"), "Exchange", "up"),
    (("party1", "party0"), "Exchange", "down"),
]
STALLS = [STREAMS[0], STREAMS[2], STREAMS[4], STREAMS[6]]
METHODS: dict[Pair, list[str]] = {
    ("client", "coordinator"): ["GetModel", "RunJob", "StartJob"],
    ("client", "party0"): ["PutInput", "FetchOutput"],
    ("coordinator", "party1"): ["OpenJob", "Prepare", "Run"],
    ("party1", "dealer"): ["Correlations"],
}


def test_late_messages(world: World, boxed: Count) -> None:
    """One of each stream, halfway."""
    faults = [
        world.boxes[pair].set(Fault("delay", way, boxed[pair, method, way] // 2, method))
        for pair, method, way in STREAMS[:-1]  # a box has one fault at a time
    ]
    world.ask()
    assert all(fault.struck.is_set() for fault in faults[1:])


@pytest.mark.parametrize(("pair", "method", "way"), STREAMS, ids=ids)
def test_a_message_of_a_stream(pair: Pair, method: str, way: Way, world: World, boxed: Count) -> None:
    """Halfway. A second copy of the last message may come when all is said, and where it is alone there is none to
    change places with: then the answer is right."""
    count = boxed[pair, method, way]
    for kind in ("drop", "reorder", "truncate", "duplicate", "corrupt"):
        fault = world.boxes[pair].set(Fault(kind, way, count // 2, method))
        error = failed(world, pair, fault, (IntegrityError, BadShare))
        assert error is not None or (kind in ("reorder", "duplicate") and count <= 2), kind
    world.recovered()


@pytest.mark.parametrize("pair", METHODS, ids=ids)
def test_a_changed_bit(pair: Pair, world: World, boxed: Count) -> None:
    """In the first message of each method and direction, whatever it says: it is no message any more."""
    for method, way in itertools.product(METHODS[pair], WAYS):
        fault = world.boxes[pair].set(Fault("corrupt", way, 0, method))
        assert failed(world, pair, fault, (IntegrityError,)) is not None
    world.recovered()


@pytest.mark.parametrize(("pair", "method", "way"), STALLS, ids=ids)
def test_a_stream_that_stalls(pair: Pair, method: str, way: Way, world: World, boxed: Count) -> None:
    """The connection is well and answers pings; nothing comes any more."""
    fault = world.boxes[pair].set(Fault("stall", way, boxed[pair, method, way] // 2, method))
    assert failed(world, pair, fault, (PeerLost,)) is not None
    world.recovered()


# Afterwards --------------------------------------------------------------------------------------------


def test_nothing_is_left(world: World) -> None:
    """No job at a server, none in the queue; no thread and no descriptor for each fault."""
    with Client(world.config) as client:
        status = client.status()
    assert (status["queued"], status["running"]) == (0, [])
    started, until = world.jobs(), time.monotonic() + DEADLINE
    while (left := world.left_open()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left and min(started.values()) > FEW
    while (more := world.grown()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not more

"""Parties of two workers each: where jobs run, what a worker has of its keeper, and what is lost with one of them.

One cluster of six servers in this process and one small model. About 9 s of CPU.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
import torch

from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, _free_ports
from ditto.client.messages import ask_of, terms_of
from ditto.client.said import coordinator as coordinator_said
from ditto.client.together import names, role_of
from ditto.doctor.own import of_server
from ditto.engine.program import Program
from ditto.errors import (
    CertificateError,
    ClusterError,
    IntegrityError,
    NotAllowed,
    PeerAbsent,
    PeerLost,
    UnknownModel,
)
from ditto.models import Plan, encode_inputs, random_batch, random_model
from ditto.models.compiled import program_for
from ditto.names import PARTIES
from ditto.net.certs import Authority
from ditto.net.config import ClientConfig, CoordinatorConfig, DealerConfig, PartyConfig, Tls, load_config
from ditto.net.identity import Identity
from ditto.net.tracing import OFF
from ditto.net.transport import open_channel
from ditto.service import copies
from ditto.service.copies import Copies
from ditto.wire import control_pb2, party_pb2, party_pb2_grpc
from parties import coordinator, dealer, party

SEQ, WORKERS = 16, 2
KINDS: dict[str, tuple[Any, Any]] = {"dealer": (DealerConfig, dealer), "coordinator": (CoordinatorConfig, coordinator)}


def until(said: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := said()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Servers:
    """Six servers in this process; alice's model `m`, and bob."""

    def __init__(self, root: Path) -> None:
        self.cluster = Cluster(root)
        self.cluster.configure(ports=_free_ports(WORKERS), workers=WORKERS)
        self.running: dict[str, tuple[Any, Any]] = {}
        for name in names(WORKERS):
            self.start(name)
        self.description, self.weights, _ = random_model("bert-tiny", 1, SEQ)
        self.description = self.description.model_copy(update={"name": "m"})
        self.configs = {name: self._config(name) for name in ("alice", "bob")}
        until(lambda: self.coordinator._pairs.up() == (0, 1))

    def _config(self, name: str) -> ClientConfig:
        stem = self.cluster.certs / f"client-{name}"
        Authority(self.cluster.certs).issue(Identity("client", name), [], stem)
        tls = Tls(ca=self.cluster.certs / "ca.pem", cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key"))
        return self.cluster.client_config().model_copy(update={"tls": tls})

    def start(self, name: str) -> None:
        kind, module = KINDS.get(name, (PartyConfig, party))
        server, _, service = module.start(load_config(self.cluster.config_path(name), kind), OFF)
        server.start()
        self.running[name] = server, service

    def stop(self, name: str) -> None:
        server, service = self.running.pop(name)
        server.stop(0).wait(10)
        service.close()

    @property
    def coordinator(self) -> Any:
        return self.running["coordinator"][1]

    def copies(self, party: int) -> Copies:
        found: Copies = self.running[f"party{party}-1"][1]._store
        return found

    def share(self) -> None:
        with Client(self.configs["alice"]) as client:
            client.share_model(self.description, self.weights)

    def served(self) -> str:
        with Client(self.configs["alice"]) as client:
            return str(client._model("m").share_id)

    @contextlib.contextmanager
    def only(self, *up: int) -> Iterator[None]:
        """Jobs go to these pairs, whoever answers how fast."""
        turns = self.coordinator._turns
        before, turns._pairs = turns._pairs, lambda: up
        try:
            yield
        finally:
            turns._pairs = before

    def ask(self, who: str = "alice", config: ClientConfig | None = None) -> tuple[int, torch.Tensor]:
        """The worker that the question went to, and the answer."""
        where: list[int] = []
        inputs = lambda program: encode_inputs(self.description, program, random_batch(1, SEQ))  # noqa: E731
        on_event = lambda event: where.append(event["worker"]) if event["event"] == "accepted" else None  # noqa: E731
        with Client(config or self.configs[who]) as client:
            (answer,) = client.infer("m", inputs, 1, SEQ, on_event).outputs.values()
        return where[0], answer

    @contextlib.contextmanager
    def waiting(self) -> Iterator[tuple[Client, control_pb2.Accepted, Any]]:
        """A job of alice's that was accepted and waits for its inputs."""
        with Client(self.configs["alice"]) as client:
            plan = Plan(1, SEQ, hold_mb=client._model("m").hold_mb)
            terms = terms_of(client._model("m"), plan, self.program)
            call = client._control.RunJob(ask_of(terms))
            try:
                accepted = next(event.accepted for event in call if event.HasField("accepted"))
                yield client, accepted, call
            finally:
                call.cancel()

    @property
    def program(self) -> Program:
        return program_for(self.description.text(), Plan(1, SEQ, hold_mb=256))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Servers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "SWEEP_S", 3600.0)  # tests look when they want to
        found = Servers(tmp_path_factory.mktemp("servers"))
        try:
            found.share()
            yield found
        finally:
            for name in [*found.running]:
                found.stop(name)


def files(servers: Servers, party: int) -> set[str]:
    place = servers.cluster.root / "data" / f"party{party}-1" / "copies"
    return {path.name for path in place.iterdir()}


def test_a_job_goes_to_the_pair_that_runs_fewest(servers: Servers) -> None:
    """And both give the same answer, but for roundings: each is off by few units in the last place (not derived)."""
    with servers.only(0, 1), servers.waiting() as (_, accepted, _):
        assert accepted.worker == 0
        first, answer = servers.ask()
    with servers.only(0):
        second, other = servers.ask()
    assert (first, second) == (1, 0)
    assert answer.shape == other.shape and (answer - other).abs().max() <= 0.05 * other.abs().max()
    assert files(servers, 0) == files(servers, 1) == {servers.served()}


def test_a_client_that_knows_one_worker_is_told_of_the_others(servers: Servers) -> None:
    config = servers.configs["alice"]
    known: dict[str, Any] = {role: config.peers.of(role) for role in ("coordinator", *PARTIES, "dealer")}
    with servers.only(1):
        assert servers.ask(config=config.model_copy(update={"peers": type(config.peers)(**known)}))[0] == 1


def test_copies_are_sealed_and_what_the_keeper_has(servers: Servers) -> None:
    with servers.only(1):
        servers.ask()
    share_id = servers.served()
    for index, role in enumerate(PARTIES):
        store = servers.running[role][1]._store
        own, copy = store.weights(share_id), servers.copies(index).weights(share_id)
        assert own is not copy and own.masked().keys() == copy.masked().keys()
        for name, tensor in own.masked().items():
            assert torch.equal(tensor, copy.masked()[name])
        there = servers.cluster.root / "data" / f"{role}-1" / "copies" / share_id
        for path in there.iterdir():
            assert path.read_bytes().startswith(b"ditto-1e"), path


def test_what_the_keeper_revokes_holds_at_once(servers: Servers) -> None:
    """At the workers themselves: the coordinator, which asks the keepers, is passed over."""
    with Client(servers.configs["alice"]) as client, servers.only(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers.coordinator._view, "check", lambda *_, **__: None)
        client.grant_model("m", "bob")
        assert servers.ask("bob")[0] == 1
        client.grant_model("m", "bob", revoke=True)
        with pytest.raises(NotAllowed, match="has not granted it to client/bob"):
            servers.ask("bob")
        assert servers.ask()[0] == 1


def test_a_dropped_sharing_is_gone_at_the_workers(servers: Servers) -> None:
    """Asked for by name, as a coordinator that knows no better would, at one; at the other the copy goes when it looks,
    whatever it is asked."""
    with servers.only(1):
        servers.ask()
        before = servers.served()
        servers.share()
        assert all(files(servers, index) == {before} for index in (0, 1))
        with pytest.raises(UnknownModel, match="party0 has no share"):
            servers.copies(0).entry(before)
        servers.copies(1)._ask()
        for index in (0, 1):
            assert files(servers, index) == set()
            with pytest.raises(UnknownModel):
                servers.copies(index).weights(before)
        assert servers.ask()[0] == 1


def test_a_worker_that_dies_takes_its_job_along_and_no_other(servers: Servers) -> None:
    with contextlib.ExitStack() as stack:
        with servers.only(0, 1):
            client, kept, running = stack.enter_context(servers.waiting())
            _, lost, doomed = stack.enter_context(servers.waiting())
        assert (kept.worker, lost.worker) == (0, 1)
        servers.stop("party0-1")
        inputs = encode_inputs(servers.description, servers.program, random_batch(1, SEQ))
        with pytest.raises(PeerAbsent, match=r"party0 does not answer \(worker 1, 127.0.0.1:\d+\)"):
            client._pair(lost)
        doomed.cancel()
        # the other one goes on, and so do those that come
        plan = Plan(1, SEQ, hold_mb=256)
        terms = terms_of(client._model("m"), plan, servers.program)
        terms.share_id = kept.share_id
        client._start(kept.job, terms, 0, servers.program, inputs)
        assert [event for event in running if event.HasField("done")]
    until(lambda: servers.coordinator._pairs.up() == (0,))
    assert [servers.ask()[0] for _ in range(2)] == [0, 0]
    with Client(servers.configs["alice"]) as client:
        said = client._channels["coordinator"]
        assert coordinator_said(said, 10).workers == {"party0-1": False, "party1-1": True}
        rows = {(p["role"], p["worker"]): p for p in client.status()["processes"]}
    assert rows["party0", 1]["error"] and not rows["party0", 1]["serving"] and rows["party0", 0]["serving"]
    servers.start("party0-1")
    until(lambda: servers.coordinator._pairs.up() == (0, 1))
    with servers.only(1):
        assert servers.ask()[0] == 1


def test_a_job_under_way_ends_with_who_was_lost(servers: Servers) -> None:
    """A worker stops while its job waits; what the coordinator then asks of it fails, and names it."""
    with servers.only(1), pytest.raises((PeerLost, PeerAbsent), match=r"party1.*\(worker 1, 127"):
        inner = copies.Copies.entry

        def dying(self: Copies, share_id: str) -> Any:
            entry = inner(self, share_id)
            if self._party == 1:
                threading.Thread(target=servers.running["party1-1"][0].stop, args=(0,)).start()
                time.sleep(1)
            return entry

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copies.Copies, "entry", dying)
            servers.ask()
    servers.stop("party1-1")
    servers.start("party1-1")
    until(lambda: servers.coordinator._pairs.up() == (0, 1))


def test_without_its_keeper_a_worker_opens_no_job(servers: Servers) -> None:
    address = servers.configs["alice"].peers.of("party1")
    share_id = servers.served()
    with servers.only(1):
        servers.ask()
    servers.stop("party1")
    with pytest.raises(PeerAbsent, match=f"worker 1 of party1: the keeper of party1, {address}, does not answer"):
        servers.copies(1).entry(share_id)
    until(lambda: servers.coordinator._pairs.up() == (0,))
    servers.start("party1")
    until(lambda: servers.coordinator._pairs.up() == (0, 1))


@pytest.mark.parametrize("what", ["cut", "changed", "other", "more"])
def test_a_share_that_arrives_otherwise_is_not_kept(what: str, servers: Servers) -> None:
    """Each message has a digest of its own; this is about what a stream of whole messages lacks, or has too much."""
    worker, share_id = servers.copies(0), servers.served()
    worker._drop([share_id])
    worker.entry(share_id)
    inner = worker._keeper.FetchShare

    class Call:
        def __init__(self, ask: Any, timeout: float) -> None:
            self.cancel, self._parts = lambda: None, iter(self._altered(list(inner(ask, timeout=timeout))))

        def _altered(self, parts: list[party_pb2.FetchShareReply]) -> list[party_pb2.FetchShareReply]:
            if what == "cut":
                return parts[:-2]
            if what == "other":
                return [party_pb2.FetchShareReply(mask_seed=bytes(16)), *parts[1:]]
            if what == "more":
                return [*parts[:-1], parts[-2], parts[-1]]
            data = parts[1].chunk.data
            parts[1].chunk.data = bytes([data[0] ^ 1]) + data[1:]
            return parts

        def __iter__(self) -> Any:
            return self._parts

        def __next__(self) -> Any:
            return next(self._parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker._keeper, "FetchShare", Call)
        with pytest.raises(IntegrityError, match="worker 1 of party0"):
            worker.weights(share_id)
    assert files(servers, 0) == set()
    assert worker.weights(share_id) is worker.weights(share_id) and files(servers, 0) == {share_id}


# Who is told -------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["party1", "dealer", "coordinator", "client-alice"])
@pytest.mark.parametrize("method", ["AskKeeper", "FetchShare"])
def test_a_keeper_answers_its_own_party_only(who: str, method: str, servers: Servers) -> None:
    certs, share_id = servers.cluster.certs, servers.served()
    tls = Tls(ca=certs / "ca.pem", cert=certs / f"{who}.pem", key=certs / f"{who}.key")
    ask = {"AskKeeper": party_pb2.AskKeeperRequest, "FetchShare": party_pb2.FetchShareRequest}[method](
        share_id=share_id
    )

    def call(channel: Any) -> Any:
        found = getattr(party_pb2_grpc.PartyStub(channel), method)(ask, timeout=10)
        return list(found) if method == "FetchShare" else found

    with pytest.raises(CertificateError, match=f"may not call {method}"):
        calls.call(servers.configs["alice"], "party0", call, tls, who.partition("-")[0])


def test_a_worker_keeps_nothing_of_its_own(servers: Servers) -> None:
    """Its client is sent to the keeper; and it is nobody's keeper, not even its own party's."""
    address = servers.configs["alice"].peers.of("party0", 1)
    drop = party_pb2.RemoveModelRequest(model="m")
    with open_channel(address, "party0", servers.configs["alice"].tls, "client") as channel:
        calls_of = party_pb2_grpc.PartyStub(channel)
        with pytest.raises(ClusterError, match="worker 1 of party0 keeps no models: ask its keeper"):
            _reached(lambda: calls_of.RemoveModel(drop, timeout=10))
    certs = servers.cluster.certs
    tls = Tls(ca=certs / "ca.pem", cert=certs / "party0.pem", key=certs / "party0.key")
    with open_channel(address, "party0", tls, "party0") as channel, pytest.raises(CertificateError):
        _reached(lambda: party_pb2_grpc.PartyStub(channel).AskKeeper(party_pb2.AskKeeperRequest(), timeout=10))


def _reached(call: Callable[[], Any]) -> Any:
    import grpc

    from ditto.net.transport import from_rpc_error

    try:
        return call()
    except grpc.RpcError as error:
        raise from_rpc_error(error, "party0") from None


def test_doctor_looks_where_a_worker_calls(servers: Servers) -> None:
    found = list(of_server(servers.cluster.config_path("party1-1")))
    assert all(finding.exit_code == 0 for finding in found), found
    ports = {role: servers.configs["alice"].peers.of(*role_of(role)) for role in ("party0-1", "party1", "dealer")}
    assert all(any(address in finding.found for finding in found) for address in ports.values()), found


def test_a_coordinator_that_sends_elsewhere(servers: Servers) -> None:
    """To somebody who is not the party, to no address, or ever further."""
    config = servers.configs["alice"]
    mine = [config.peers.of(role) for role in PARTIES]
    with Client(config) as client:

        def told(*places: str) -> control_pb2.Accepted:
            return control_pb2.Accepted(worker=5, addresses=places)

        with pytest.raises(CertificateError):
            client._pair(told(config.peers.dealer, mine[1]))
        with pytest.raises(CertificateError):
            client._pair(told(mine[1], mine[0]))
        for wrong in ("nowhere", "a:b", "x" * 999, "unix:/dev/null", ""):
            with pytest.raises(ClusterError, match="no address"):
                client._pair(told(wrong, wrong))
        with pytest.raises(IntegrityError, match="does not say where worker 5 is"):
            client._pair(told())

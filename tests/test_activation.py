"""A sharing that fails on its way: a party or the coordinator is killed between any two steps, and starts again from
what was on its disk then. The servers run in this process, so that the moment is exact."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest

from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, _free_ports
from ditto.client.messages import chunks
from ditto.engine.sharing import share
from ditto.errors import ClusterError, DittoError, ReuseError, StorageError
from ditto.models import encode_inputs, random_batch, random_model
from ditto.models.compiled import weights_of
from ditto.names import PARTIES
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, load_config
from ditto.net.link_channel import LinkChannel
from ditto.net.tracing import OFF
from ditto.ring.prg import new_seed
from ditto.service import model_store
from ditto.service.model_store import ModelStore
from ditto.service.registered import RegisteredModels
from ditto.wire import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc
from parties import coordinator, dealer, party

SEQ = 16
KINDS: dict[str, tuple[Any, Any]] = {
    "dealer": (DealerConfig, dealer), "party0": (PartyConfig, party), "party1": (PartyConfig, party),
    "coordinator": (CoordinatorConfig, coordinator),
}  # fmt: skip


class Killed(ClusterError):
    """What a handler ends with whose server is gone."""


class Servers:
    """Four servers in this process, each to be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.cluster = Cluster(root)
        self.cluster.configure(ports=_free_ports())
        self.running: dict[str, tuple[Any, Any]] = {}
        for role in KINDS:
            self.start(role)
        self.description, self.weights, _ = random_model("bert-tiny", 1, SEQ)
        self.description = self.description.model_copy(update={"name": "m"})

    def start(self, role: str) -> None:
        kind, module = KINDS[role]
        server, _, service = module.start(load_config(self.cluster.config_path(role), kind), OFF)
        server.start()
        self.running[role] = server, service

    def data(self, role: str) -> Path:
        return self.cluster.root / "data" / role

    def kill(self, role: str) -> None:
        """Its disk stays as it is now, whatever its threads still do."""
        shutil.copytree(self.data(role), self.cluster.root / "then" / role)
        self.running[role][0].stop(0)

    def restart(self, role: str) -> None:
        server, service = self.running.pop(role)
        server.stop(0).wait(10)
        service.close()
        shutil.rmtree(self.data(role))
        (self.cluster.root / "then" / role).rename(self.data(role))
        self.start(role)

    def stop(self) -> None:
        for server, service in self.running.values():
            server.stop(0)
            service.close()

    def client(self) -> Client:
        return Client(self.cluster.client_config())

    def share(self) -> None:
        with self.client() as client:
            client.share_model(self.description, self.weights)

    def served(self) -> str:
        with self.client() as client:
            return str(client._model("m").share_id)

    def answers(self) -> None:
        inputs = lambda program: encode_inputs(self.description, program, random_batch(1, SEQ))  # noqa: E731
        with self.client() as client:
            assert client.infer("m", inputs, 1, SEQ).outputs

    def sharings(self, role: str) -> list[str]:
        return [entry.share_id for entry in self.running[role][1]._store.entries()]

    def put(self, share_id: str) -> None:
        """Both shares, by hand."""
        text, seed = self.description.text(), new_seed()
        stub = party_pb2_grpc.PartyStub
        for index, role in enumerate(PARTIES):
            header = party_pb2.ModelHeader(model="m", share_id=share_id, description=text)
            parts = [party_pb2.PutModelRequest(header=header)]
            if index == 0:
                parts[0].header.seed = seed
            else:
                for key, wire in weights_of(text).items():
                    pieces = chunks(key, wire, share(key, self.weights[key], wire, seed))
                    parts += [party_pb2.PutModelRequest(chunk=chunk) for chunk in pieces]
            calls.call(self.cluster.client_config(), role, lambda c, p=parts: stub(c).PutModel(iter(p), timeout=30))

    def register(self, share_id: str) -> None:
        model = control_pb2.Model(model="m", share_id=share_id, description=self.description.text())
        ask, stub = control_pb2.RegisterModelRequest(model=model), control_pb2_grpc.CoordinatorStub
        config = self.cluster.client_config()
        calls.call(config, "coordinator", lambda c: stub(c).RegisterModel(iter([ask]), timeout=60))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    found = Servers(tmp_path_factory.mktemp("servers"))
    try:
        found.share()
        yield found
    finally:
        found.stop()


Patch = Callable[[Any, str, Callable[..., Any]], None]


def _after(call: Callable[..., Any], when: Callable[..., bool], die: Callable[[], None]) -> Callable[..., Any]:
    def called(*args: Any, **named: Any) -> Any:
        result = call(*args, **named)
        if when(*args):
            die()
        return result

    return called


def _before(call: Callable[..., Any], when: Callable[..., bool], die: Callable[[], None]) -> Callable[..., Any]:
    def called(*args: Any, **named: Any) -> Any:
        if when(*args):
            die()
        return call(*args, **named)

    return called


def _file(name: str, role: str) -> Callable[..., bool]:
    return lambda path, *rest: path.name == name and path.parents[2].name == role


MOMENTS: dict[str, Callable[[str, ModelStore], tuple[Any, str, Any, Callable[..., bool]]]] = {
    "its identifier is used up": lambda role, store: (store._ids, "take", _after, lambda *_: True),
    "its share is written": lambda role, store: (store, "_write", _after, lambda entry: not entry.active),
    "it has the mask seed": lambda role, store: (model_store, "save_seed", _after, _file("mask_seed", role)),
    "F is opened and written": lambda role, store: (
        model_store, "save_tensors", _after, _file("opened.safetensors", role),
    ),
    "transcripts are compared": lambda role, store: (
        model_store, "compare_transcripts", _after, lambda channel, index, until: PARTIES[index] == role,
    ),
    "the rest is written": lambda role, store: (model_store, "save_tensors", _after, _file("kept.safetensors", role)),
    "it is active": lambda role, store: (store, "_write", _after, lambda entry: entry.active),
    "the older one goes": lambda role, store: (store, "_drop", _before, lambda share_id: True),
    "the older one is burnt": lambda role, store: (store._ids, "drop", _after, lambda share_id: True),
}  # fmt: skip


BOTH = {"transcripts are compared", "it is active"}  # from where on the two parties may differ


@pytest.mark.parametrize(
    ("moment", "role"),
    [(moment, role) for i, moment in enumerate(MOMENTS) for role in (PARTIES if moment in BOTH else [PARTIES[i % 2]])],
)
def test_a_party_killed_at_any_moment(
    moment: str, role: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is served all the while by the older sharing or the newer, and sharing it once more is all there is to
    do: nothing of the failed attempt is left, and its identifier is burnt wherever it was taken."""
    before = servers.served()
    where, name, how, when = MOMENTS[moment](role, servers.running[role][1]._store)
    killed = threading.Event()

    def die() -> None:
        if not killed.is_set():
            killed.set()
            servers.kill(role)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, name, how(getattr(where, name), when, die))
        with pytest.raises(DittoError):
            servers.share()
    assert killed.is_set()
    servers.restart(role)
    servers.answers()
    tried = {share_id for r in PARTIES for share_id in burnt(servers, r)}
    servers.share()
    after = servers.served()
    assert after != before and all(servers.sharings(r) == [after] for r in PARTIES)
    assert before in tried and tried <= {share_id for r in PARTIES for share_id in burnt(servers, r)}
    servers.answers()


def burnt(servers: Servers, role: str) -> set[str]:
    return {path.name.partition(".")[0] for path in (servers.data(role) / "share_ids").iterdir()}


def test_a_coordinator_killed_before_it_knows(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parties have activated the sharing. The client asks once more, and it serves: nothing is opened again."""
    before, opened = servers.served(), list[str]()
    exchange = LinkChannel.exchange

    def counted(self: LinkChannel, label: str, payload: Any) -> Any:
        opened.append(label)
        return exchange(self, label, payload)

    def die(*_: Any) -> None:
        servers.kill("coordinator")
        threading.Thread(target=servers.restart, args=("coordinator",)).start()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LinkChannel, "exchange", counted)
        models: RegisteredModels = servers.running["coordinator"][1]._models
        patch.setattr(models, "put", die)
        servers.share()
    assert len(opened) == len({*opened}) * 2, "each opening once by each party"
    after = servers.served()
    assert after != before and all(servers.sharings(r) == [after] for r in PARTIES)
    servers.answers()


def failing(call: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    def failed(*args: Any) -> Any:
        if when(*args):
            raise StorageError("no space left on device")
        return call(*args)

    return failed


def test_an_activation_that_failed_at_both_is_repeated(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same identifier: the same shares under the same masks, so each message is what it was before."""
    share_id, sent = secrets.token_hex(16), list[list[tuple[str, str]]]()
    servers.put(share_id)
    exchange = LinkChannel.exchange

    def recorded(self: LinkChannel, label: str, payload: Any) -> Any:
        if not label.startswith("transcript"):
            sent[-1].append((label, hashlib.sha256(bytes(payload)).hexdigest()))
        return exchange(self, label, payload)

    with monkeypatch.context() as patch:
        patch.setattr(LinkChannel, "exchange", recorded)
        with monkeypatch.context() as faulty:
            wrong = failing(model_store.compare_transcripts, lambda channel, index, until: True)
            faulty.setattr(model_store, "compare_transcripts", wrong)
            sent.append([])
            with pytest.raises(StorageError):
                servers.register(share_id)
        sent.append([])
        servers.register(share_id)
    first, second = map(sorted, sent)
    assert first == second and len({*first}) == len(first) > 8
    assert servers.served() == share_id
    servers.register(share_id)  # a third time: it serves already
    servers.answers()


@pytest.mark.parametrize("role", PARTIES)
def test_a_half_activation_ends_its_identifier(role: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """One party has activated it, the other's disk was full: the first has no share left to open anything with."""
    share_id = secrets.token_hex(16)
    servers.put(share_id)
    with monkeypatch.context() as patch:
        patch.setattr(model_store, "save_tensors", failing(model_store.save_tensors, _file("kept.safetensors", role)))
        with pytest.raises(StorageError):
            servers.register(share_id)
    entries = [servers.running[r][1]._store.entry(share_id) for r in PARTIES]
    assert sorted(entry.active for entry in entries) == [False, True]
    with pytest.raises(ReuseError, match="failed half way; share the model again"):
        servers.register(share_id)
    servers.answers()
    servers.share()
    assert all(servers.sharings(r) == [servers.served()] for r in PARTIES)
    servers.answers()


def test_what_fails_again_and_again_leaves_little(servers: Servers) -> None:
    """An owner whose activations all fail: the oldest of what was put and not activated goes."""
    serving = servers.served()
    ids = [secrets.token_hex(16) for _ in range(2 * model_store.UNFINISHED)]
    for share_id in ids:
        servers.put(share_id)
    for role in PARTIES:
        assert servers.sharings(role) == [serving, *ids[-model_store.UNFINISHED :]]
    servers.answers()
    servers.share()
    assert all(servers.sharings(r) == [servers.served()] for r in PARTIES)


def test_an_older_sharing_drops_no_newer_one(servers: Servers) -> None:
    """Of two that are shared at once, the later one may serve when the first one's client comes to clean up."""
    first, second = secrets.token_hex(16), secrets.token_hex(16)
    for share_id in (first, second):
        servers.put(share_id)
        servers.register(share_id)
    ask, stub = party_pb2.RemoveModelRequest(model="m", keep=first), party_pb2_grpc.PartyStub
    for role in PARTIES:
        calls.call(servers.cluster.client_config(), role, lambda c: stub(c).RemoveModel(ask, timeout=10))
        assert servers.sharings(role) == [first, second]
    servers.answers()
    late, later = secrets.token_hex(16), secrets.token_hex(16)
    for share_id in (late, later):
        servers.put(share_id)
    servers.register(later)
    with pytest.raises(DittoError, match="a later sharing of m serves already"):
        servers.register(late)
    assert servers.served() == later
    servers.share()

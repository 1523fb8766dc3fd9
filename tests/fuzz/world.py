"""A whole cluster in this process, with one small model: a dealer, a party beside a mirror of itself, a coordinator.

The mirror sends back every frame that the party sends, so that jobs run to their end. What an input leaves is taken
away again (`restore`), so that each one meets the same cluster.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from ditto.client.publication import Registration, with_files
from ditto.engine.plan import Plan
from ditto.models import Checkpoint, Description, Dimensions, describe, encode_weights
from ditto.models.compiled import program_for
from ditto.models.description import digest_of
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Prompts
from ditto.names import PARTIES
from ditto.net import certs
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, Tls
from ditto.net.emulation import Link
from ditto.net.identity import Identity
from ditto.net.metrics import LinkMetrics
from ditto.net.outbox import Outbox
from ditto.net.peerlink import PeerLink, _frames
from ditto.service import coordinator_service, copies, dealer_service, pairs, party_service, stored
from ditto.service.registered import Registered
from ditto.service.storage import Storage
from ditto.wire import control_pb2_grpc, dealer_pb2_grpc, party_pb2, party_pb2_grpc
from fuzz.inside import Handlers, Inside

SHARE, JOB, ATTEMPT, NEW = "5" * 32, "1" * 32, "a" * 32, "b" * 32
MODEL, OWNER, SEED = "small", "client/alice", bytes(range(16))
PLAN = Plan(1, 2, tokens=2, guard=True)
FILES = {"tokenizer.json": b"{}", "vocab.txt": b"[PAD]\n" * 9}  # public, whatever is in them
WORDS = (SHARE, JOB, ATTEMPT, NEW, MODEL, OWNER, "client/bob", "alice", "bob", "other")


@cache
def directory() -> Path:
    """In memory where that is possible: a file a call, each put to the disk, takes time."""
    root = Path(os.environ.get("DITTO_FUZZ_SCRATCH", "/dev/shm"))
    made = Path(tempfile.mkdtemp(prefix="ditto-fuzz-", dir=root if root.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def model() -> tuple[Description, dict[str, torch.Tensor]]:
    """A GPT-2 of one layer: it has stages, and all that an encoder has."""
    d = Dimensions(
        hidden=8, layers=1, heads=2, inner=16, vocabulary=16, positions=16, embedding=8, epsilon=1e-5,
        activation="tanh gelu",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: float("ln_" in name and name.endswith("weight")) + 0.05 * torch.randn(shape, generator=generator)
        for name, shape in architecture_of("GPT2LMHeadModel").shapes(d).items()
    }
    zeros = torch.zeros((1, 4), dtype=torch.long)
    description, arranged = describe(Checkpoint("GPT2LMHeadModel", d, tensors), MODEL, [Prompts(zeros, [4])])
    return with_files(description, FILES), encode_weights(description, arranged.tensors)


@cache
def pem(who: str) -> bytes:
    """A certificate: of a role, or of client/NAME."""
    home = directory() / "certs"
    if not home.exists():
        certs.init_certs(home, [], client="alice")
        certs.Authority(home).issue(Identity("client", "bob"), (), home / "bob")
    return (home / f"{ {OWNER: 'client', 'client/bob': 'bob'}.get(who, who) }.pem").read_bytes()


@cache
def registration() -> Registration:
    """The model with its public part, as its owner registers it."""
    pem(OWNER)
    home = directory() / "certs"
    return Registration.of(
        model()[0], FILES, Tls(ca=home / "ca.pem", cert=home / "client.pem", key=home / "client.key")
    )


class Mirror:
    """The sending end of a party's link, which is its receiving end, too."""

    def __init__(self, link: PeerLink) -> None:
        self._link, self._ways = link, (Link(None), LinkMetrics(CollectorRegistry()))

    def put(self, item: Any) -> None:
        if item is not None:
            one = Outbox()
            one.put(item)
            one.put(None)
            for frame in _frames(one, *self._ways):
                self._link._receive(frame, self)  # type: ignore[arg-type]

    def get(self) -> None: ...


class World:
    def __init__(self) -> None:
        stored.use(Storage(bytes(32)))
        self.servers = Handlers()
        tls = Tls(ca=Path("ca"), cert=Path("cert"), key=Path("key"))
        root = directory()
        for module in (party_service, coordinator_service, pairs, copies):
            module.open_channel = lambda address, peer, tls, role, *_: Inside(self.servers, pem(role))  # type: ignore[attr-defined]
        self.text = model()[0].text()
        self.program = program_for(self.text, PLAN)
        self.dealer = dealer_service.DealerService(DealerConfig(tls=tls, listen="a:1", data_dir=root / "dealer"))
        dealer_pb2_grpc.add_DealerServicer_to_server(self.dealer, self.servers)  # type: ignore[no-untyped-call]
        config = PartyConfig(
            role="party0", tls=tls, listen="a:1", data_dir=root / "party0", connect_timeout_s=0.01, step_timeout_s=3
        )
        self.party = party_service.PartyService(config)
        party_pb2_grpc.add_PartyServicer_to_server(self.party, self.servers)  # type: ignore[no-untyped-call]
        link = party_service.LinkService(self.party.link)
        party_pb2_grpc.add_PeerLinkServicer_to_server(link, self.servers)  # type: ignore[no-untyped-call]
        self.mirror = Mirror(self.party.link)
        self.party.link._attach(self.mirror)  # type: ignore[arg-type]
        header = party_pb2.ModelHeader(model=MODEL, share_id=SHARE, description=self.text, seed=SEED)
        put = party_pb2.PutModelRequest(header=header)
        self.servers.serve("/ditto.v1.Party/PutModel", [put.SerializeToString()], pem(OWNER))
        ask = party_pb2.ActivateModelRequest(
            model=MODEL, share_id=SHARE, attempt=ATTEMPT, owner=OWNER, description_digest=digest_of(self.text)
        )
        self.servers.serve("/ditto.v1.Party/ActivateModel", [ask.SerializeToString()], pem("coordinator"))
        self.coordinator = coordinator_service.CoordinatorService(
            CoordinatorConfig(tls=tls, listen="a:1", data_dir=root / "coordinator", connect_timeout_s=0.01)
        )
        control_pb2_grpc.add_CoordinatorServicer_to_server(self.coordinator, self.servers)  # type: ignore[no-untyped-call]
        first, *rest = registration().requests(SHARE)
        pieces = (request.data for request in rest)
        part = self.coordinator._public.receive(first.model, first.public, pem(OWNER), pieces, OWNER)
        entry = Registered(model=MODEL, share_id=SHARE, description=self.text, owner=OWNER, public=part)
        self.coordinator._models.put(entry)
        shutil.copytree(root, self._kept(), ignore=shutil.ignore_patterns("certs"))
        self._entries = dict(self.party._store._entries)
        self._weights = dict(self.party._store._loaded)
        self._registered = dict(self.coordinator._models._models)

    def _kept(self) -> Path:
        return directory() / "kept"

    def restore(self) -> None:
        """As it was before the last input."""
        self.party._jobs.close_all()
        self.party._jobs._used.clear()
        link = self.party.link
        link._boxes.clear()
        link._closed.clear()
        store = self.party._store
        store._entries, store._arriving = dict(self._entries), {}
        store._loaded.clear()
        store._loaded.update(self._weights)
        self.dealer.close()
        for job in list(self.dealer._jobs.values()):
            self.dealer._jobs.pop(job.name, None)
        self.dealer._room._taken.clear()
        self.dealer._used.clear()
        self.dealer._known = {SHARE: MODEL}
        self.coordinator._models._models = dict(self._registered)
        self.coordinator._runs.clear()
        for of in self.coordinator._turns._all():
            of.clear()
        stores = ("party0/models", "party0/share_ids", "dealer/models", "coordinator/models", "coordinator/public")
        for place in stores:
            now, then = directory() / place, self._kept() / place
            before, after = _names(then), _names(now)
            for name in after - before:
                path = now / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in before - after:
                path = then / name
                shutil.copytree(path, now / name) if path.is_dir() else shutil.copy2(path, now / name)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@cache
def world() -> World:
    return World()


def roles_of(service: str, method: str) -> tuple[str, ...]:
    """Who may call it: here, as certificates."""
    if service == "Dealer":
        return ("coordinator",) if method == "Inventory" else PARTIES
    if service == "PeerLink":
        return ("party1",)
    if method in ("AskKeeper", "FetchShare"):
        return ("party0",)
    control = ("ActivateModel", "CheckModel", "OpenJob", "Prepare", "Run", "CloseJob")
    return ("coordinator",) if service == "Party" and method in control else (OWNER, "client/bob")

"""A cluster with several clients, one of whom shared a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import calls
import grpc
import torch

from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, embedded
from ditto.client.messages import chunks
from ditto.engine.sharing import share
from ditto.models import Description, encode_inputs, random_batch, random_model
from ditto.models.compiled import weights_of
from ditto.names import PARTIES
from ditto.net.certs import Authority
from ditto.net.config import ClientConfig, Tls
from ditto.net.identity import Identity
from ditto.ring.prg import new_seed
from ditto.wire import control_pb2, control_pb2_grpc, dealer_pb2, dealer_pb2_grpc, party_pb2, party_pb2_grpc

SEQ = 16
Weights = dict[str, torch.Tensor]


def issue(cluster: Cluster, name: str) -> Tls:
    """A client's certificate of its own, by the cluster's authority."""
    stem = cluster.certs / f"client-{name}"
    Authority(cluster.certs).issue(Identity("client", name), [], stem)
    return Tls(ca=cluster.certs / "ca.pem", cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key"))


@dataclass
class World:
    """A cluster, its clients' configurations, and alice's model, shared once."""

    cluster: Cluster
    configs: dict[str, ClientConfig]
    description: Description
    weights: Weights
    burnt: list[str] = field(default_factory=list)  # dropped identifiers
    bound: dict[str, list[bytes]] = field(default_factory=dict)  # seeds by identifier, of digests "a…" and "b…"

    def client(self, name: str) -> Client:
        return Client(self.configs[name])

    def call(self, name: str, peer: str, method: Callable[[grpc.Channel], Any]) -> Any:
        """One call as a client, or as the server whose key its operator holds; raises what came back."""
        if name in self.configs:
            tls, role = self.configs[name].tls, "client"
        else:
            certs, role = self.cluster.certs, name
            tls = Tls(ca=certs / "ca.pem", cert=certs / f"{name}.pem", key=certs / f"{name}.key")
        return calls.call(self.configs["alice"], peer, method, tls, role)

    def model(self, name: str = "m") -> control_pb2.Model:
        ask = control_pb2.GetModelRequest(model=name)
        return self.call("alice", "coordinator", lambda c: control_pb2_grpc.CoordinatorStub(c).GetModel(ask))

    def put(self, name: str, party: int, model: str, share_id: str, weights: Weights) -> None:
        """Bring one party's share of `weights` under an identifier of the caller's choice."""
        text = self.description.model_copy(update={"name": model}).text()
        header, seed = party_pb2.ModelHeader(model=model, share_id=share_id, description=text), new_seed()
        parts = [party_pb2.PutModelRequest(header=header)]
        if party == 0:
            parts[0].header.seed = seed
        else:
            for key, wire in weights_of(text).items():
                pieces = chunks(key, wire, share(key, weights[key], wire, seed))
                parts += [party_pb2.PutModelRequest(chunk=chunk) for chunk in pieces]
        self.call(name, PARTIES[party], lambda c: party_pb2_grpc.PartyStub(c).PutModel(iter(parts), timeout=60))

    def register(self, name: str, model: str, share_id: str) -> None:
        text = self.description.model_copy(update={"name": model}).text()
        ask = control_pb2.RegisterModelRequest(
            model=control_pb2.Model(model=model, share_id=share_id, description=text)
        )
        stub = control_pb2_grpc.CoordinatorStub
        self.call(name, "coordinator", lambda c: stub(c).RegisterModel(iter([ask]), timeout=120))

    def infer(self, name: str, on_event: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        with self.client(name) as client:
            inputs = lambda program: encode_inputs(self.description, program, random_batch(1, SEQ))  # noqa: E731
            return client.infer("m", inputs, 1, SEQ, on_event).report

    def seed(self, role: str, share_id: str, digest: str) -> bytes:
        """A party's mask seed of a sharing, as its operator may ask the dealer for it."""
        text = self.description.text()
        ask = dealer_pb2.ModelSeedRequest(model="m", share_id=share_id, description=text, digest=digest)
        reply = self.call(role, "dealer", lambda c: dealer_pb2_grpc.DealerStub(c).ModelSeed(ask, timeout=30))
        return bytes(reply.seed)

    def sharings(self, party: int) -> dict[str, str]:
        """Owner by sharing, as a party says."""
        ask = party_pb2.PartyModelsRequest()
        stub = party_pb2_grpc.PartyStub
        reply = self.call("coordinator", PARTIES[party], lambda c: stub(c).ListModels(ask, timeout=10))
        return {model.share_id: model.owner for model in reply.models}

    def restart(self) -> None:
        self.cluster.down()
        self.cluster.up()


@contextlib.contextmanager
def world_of_clients() -> Iterator[World]:
    """A cluster of its own, with alice's model `m`; bob and mallory have certificates and nothing else."""
    with embedded() as cluster:
        config = cluster.client_config()
        configs = {
            name: config.model_copy(update={"tls": issue(cluster, name)}) for name in ("alice", "bob", "mallory")
        }
        description, weights, _ = random_model("bert-tiny", 1, SEQ)
        world = World(cluster, configs, description.model_copy(update={"name": "m"}), weights)
        with world.client("alice") as client:
            client.share_model(world.description, weights)
        yield world

"""Who may call what: every method of every server, called with the certificate of every role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ditto.errors import CertificateError
from ditto.names import ROLES, SERVERS
from ditto.net.certs import Authority, init_certs
from ditto.net.config import PartyConfig, Tls
from ditto.net.identity import Identity
from ditto.net.transport import Roles, build_server, from_rpc_error, open_channel
from ditto.service import coordinator_service, dealer_service, party_service
from ditto.wire import control_pb2, dealer_pb2, party_pb2

PARTY = {
    "client": {"PutModel", "RemoveModel", "GrantModel", "PutInput", "FetchOutput", "ListModels"},
    "coordinator": {"ActivateModel", "CheckModel", "ListModels", "OpenJob", "Prepare", "Run", "CloseJob", "Stock"},
}
ALLOWED: dict[str, dict[str, set[str]]] = {  # server -> caller's role -> methods
    "coordinator": {
        "client": {
            "RegisterModel",
            "UnregisterModel",
            "ListModels",
            "GetModel",
            "GetPublic",
            "Status",
            "RunJob",
            "StartJob",
            "Deal",
        }
    },
    "dealer": {
        "party0": {"ModelSeed", "ForgetModel", "Correlations", "TakeStock"},
        "party1": {"ModelSeed", "ForgetModel", "Correlations", "TakeStock"},
        "coordinator": {"Inventory"},
    },
    "party0": PARTY | {"party0": {"AskKeeper", "FetchShare"}, "party1": {"Exchange"}},
    "party1": PARTY | {"party1": {"AskKeeper", "FetchShare"}},
}
METHODS = {
    f"/{service.full_name}/{method.name}"
    for module in (control_pb2, dealer_pb2, party_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Anything(grpc.GenericRpcHandler):
    """Answers whatever the guard lets through."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"reached")


def pems(certs: Path, stem: str) -> Tls:
    return Tls(ca=certs / "ca.pem", cert=certs / f"{stem}.pem", key=certs / f"{stem}.key")


def table(role: str, files: Tls, dir: Path) -> Roles:
    """What the process of this role is started with."""
    if role.startswith("party"):
        return party_service.roles(PartyConfig(role=role, listen="127.0.0.1:0", tls=files, data_dir=dir))
    return coordinator_service.ROLES if role == "coordinator" else dealer_service.ROLES


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certs")
    init_certs(path, [], client="alice")
    Authority(path).issue(Identity("client", "dealer"), [], path / "client-dealer")  # a name is no role
    return path


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    role = request.param
    files = pems(certs, role)
    running, port = build_server("127.0.0.1:0", files, role, table(role, files, tmp_path_factory.mktemp("data")))
    running.add_generic_rpc_handlers((Anything(),))
    running.start()
    yield role, port
    running.stop(None)


@pytest.mark.parametrize("holds", [*ROLES, "client-dealer"])
def test_every_method_with_every_role(holds: str, server: tuple[str, int], certs: Path) -> None:
    role, port = server
    mine = holds.split("-")[0]
    reached, refused = set(), set()
    with open_channel(f"127.0.0.1:{port}", role, pems(certs, holds), mine) as channel:
        for method in METHODS:
            name = method.rpartition("/")[2]
            try:
                assert channel.unary_unary(method)(b"", timeout=10) == b"reached"
                reached.add(name)
            except grpc.RpcError as error:
                assert isinstance(from_rpc_error(error, role), CertificateError)
                refused.add(name)
    assert reached == ALLOWED[role].get(mine, set())
    assert reached | refused == {method.rpartition("/")[2] for method in METHODS} and not reached & refused

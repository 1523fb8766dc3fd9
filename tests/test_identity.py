"""Identities: who passes for whom; what a changed certificate or list does to a running server; a dead peer."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ditto.errors import CertificateError, DittoError, PeerAbsent, PeerLost, UsageError
from ditto.names import ROLES, SERVERS
from ditto.net.certs import Authority, init_certs, load_certificate
from ditto.net.config import Tls
from ditto.net.identity import Identity, caller, holder, identity, identity_of, parse
from ditto.net.seal import sealing, unsealing
from ditto.net.tls import load_tls
from ditto.net.transport import PROTOCOL_VERSION, VERSION_KEY, build_server, connect, from_rpc_error, open_channel

ALICE = Identity("client", "alice")
WHO = "/test.Echo/Who"


@pytest.fixture()
def certs(tmp_path: Path) -> Path:
    init_certs(tmp_path / "certs", [], client="alice")
    return tmp_path / "certs"


def tls(certs: Path, stem: str, crl: str | None = None) -> Tls:
    return Tls(
        ca=certs / "ca.pem", cert=certs / f"{stem}.pem", key=certs / f"{stem}.key", crl=certs / crl if crl else None
    )


def foreign(certs: Path, stem: str, common_name: str, names: list[x509.GeneralName]) -> None:
    """A pair signed by the same authority's key, but not by `ditto certs`: another tool, or an older version."""
    root = load_certificate(certs / "ca.pem")
    authority = serialization.load_pem_private_key((certs / "ca.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(1))
        .not_valid_after(now + dt.timedelta(9))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority, hashes.SHA256())
    (certs / f"{stem}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (certs / f"{stem}.key").write_bytes(key.private_bytes(*private))


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


# What is an identity -----------------------------------------------------------------------------


@pytest.mark.parametrize("who", [*map(Identity, SERVERS), ALICE, Identity("client", "A.b-c_9")])
def test_spelled_and_read(who: Identity) -> None:
    assert parse(who.uri) == who == identity(*who)
    assert who.uri == f"ditto://{who}" and str(who).replace("/", "-") == who.file


@pytest.mark.parametrize(
    "text",
    [
        "", "ditto://", "party0", "ditto:party0", "DITTO://party0", "ditto://Party0", "ditto://party2", "ditto://party0/",
        "ditto://party0/x", "ditto://client", "ditto://client/", "ditto://client/a/b", "ditto://client/../x",
        "ditto://client/a\n", "ditto://client/" + "a" * 65, "ditto://ditto://party0", "ditto://client/a?b",
        " ditto://dealer",
    ],
)  # fmt: skip
def test_what_is_no_identity(text: str) -> None:
    with pytest.raises(CertificateError):
        parse(text)


@pytest.mark.parametrize("role, name", [("client", ""), ("client", "a b"), ("party0", "x"), ("root", "")])
def test_what_cannot_be_named(role: str, name: str) -> None:
    with pytest.raises(UsageError):
        identity(role, name)


def test_a_certificate_has_exactly_one(certs: Path) -> None:
    for role in ROLES:
        assert identity_of(load_certificate(certs / f"{role}.pem")) == (ALICE if role == "client" else Identity(role))
    several = [uri("ditto://party0"), uri("ditto://party1")]
    for names in ([], [x509.DNSName("party0")], several, [uri("ditto://party0"), uri("DITTO://party1")]):
        foreign(certs, "x", "party0", names)
        with pytest.raises(CertificateError):
            identity_of(load_certificate(certs / "x.pem"))
        with pytest.raises(CertificateError):
            load_tls(tls(certs, "x"), "party0")
    foreign(certs, "x", "dealer", [uri("ditto://party0"), uri("spiffe://example/party0"), x509.DNSName("dealer")])
    assert identity_of(load_certificate(certs / "x.pem")) == Identity("party0")  # whatever else it is called
    load_tls(tls(certs, "x"), "party0")
    with pytest.raises(CertificateError, match="for party0, not for dealer"):
        load_tls(tls(certs, "x"), "dealer")


def test_files_that_do_not_belong_together(certs: Path) -> None:
    shutil.copy(certs / "party1.key", certs / "party0.key")
    with pytest.raises(CertificateError, match="not the key of"):
        load_tls(tls(certs, "party0"), "party0")
    (certs / "party0.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(CertificateError, match="not a PEM key"):
        load_tls(tls(certs, "party0"), "party0")


def test_a_caller_without_a_certificate() -> None:
    for found in ({}, {"x509_pem_cert": []}, {"x509_pem_cert": [b"nonsense"]}, {"x509_common_name": [b"party0"]}):
        context: Any = SimpleNamespace(auth_context=lambda found=found: found)
        with pytest.raises(CertificateError):
            caller(context)


# Who passes for whom -----------------------------------------------------------------------------


class Echo(grpc.GenericRpcHandler):
    """`Who` answers identity, serial and address of the caller; `Stay` sends as much as it gets."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == "/test.Echo/Who":
            return grpc.unary_unary_rpc_method_handler(self._who)
        if details.method == "/test.Echo/Stay":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
        return None

    @staticmethod
    def _who(_: bytes, context: grpc.ServicerContext) -> bytes:
        who, serial = holder(context)
        assert caller(context) == who
        return f"{who} {serial} {context.peer()}".encode()


@pytest.fixture()
def serve() -> Iterator[Callable[[Tls, str], int]]:
    """Start a server of a role on a free port; everybody may call it."""
    servers = []

    def start(files: Tls, role: str) -> int:
        everybody = frozenset(ROLES)
        server, port = build_server("127.0.0.1:0", files, role, {"Who": everybody, "Stay": everybody})
        server.add_generic_rpc_handlers((Echo(),))
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(None)


def who(channel: grpc.Channel, peer: str = "dealer") -> tuple[str, int, str]:
    try:
        answer: bytes = channel.unary_unary("/test.Echo/Who")(b"", timeout=10, wait_for_ready=False)
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from None
    name, serial, address = answer.decode().split()
    return name, int(serial), address


@pytest.fixture()
def imposter() -> Iterator[Callable[[Path, str], int]]:
    """A server that shows somebody's certificate and asks nobody for theirs: whoever holds the key can run one."""
    servers = []

    def start(certs: Path, stem: str) -> int:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        checks = health.HealthServicer()
        checks.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        pair = ((certs / f"{stem}.key").read_bytes(), (certs / f"{stem}.pem").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(None)


def reach(certs: Path, port: int, peer: str, stem: str, role: str) -> None:
    with open_channel(f"127.0.0.1:{port}", peer, tls(certs, stem), role) as channel:
        connect(channel, peer, 5)


def test_a_caller_without_an_identity_does_not_call(certs: Path, imposter: Callable[[Path, str], int]) -> None:
    """Its own certificate once told it whether servers can be checked: without its role there, it checked nothing, and
    the holder of a client's key passed for party 0."""
    port = imposter(certs, "client")
    foreign(certs, "p1x", "party1", [x509.DNSName("host.example")])
    with pytest.raises(CertificateError, match="identity"):
        reach(certs, port, "party0", "p1x", "party1")
    with pytest.raises(CertificateError, match="handshake"):
        reach(certs, port, "party0", "party1", "party1")


@pytest.mark.parametrize("holds", ROLES)
@pytest.mark.parametrize("peer", SERVERS)
def test_nobody_passes_for_another_server(
    holds: str, peer: str, certs: Path, imposter: Callable[[Path, str], int]
) -> None:
    port = imposter(certs, holds)
    if holds == peer:
        reach(certs, port, peer, "client", "client")
    else:
        with pytest.raises(CertificateError, match="handshake"):
            reach(certs, port, peer, "client", "client")


def test_a_clients_certificate_is_no_servers_whatever_its_names(
    certs: Path, imposter: Callable[[Path, str], int]
) -> None:
    """Usage says so, too: an authority that let a host slip in would not make a server of it."""
    usage = load_certificate(certs / "client.pem").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    port = imposter(certs, "client")
    credentials = grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert isinstance(from_rpc_error(caught.value, "party0"), CertificateError)


def test_a_server_goes_by_the_identity_alone(certs: Path, serve: Callable[[Tls, str], int]) -> None:
    port = serve(tls(certs, "dealer"), "dealer")

    def raw(stem: str) -> str:
        """As a caller that does not check itself."""
        ca, key, cert = ((certs / name).read_bytes() for name in ("ca.pem", f"{stem}.key", f"{stem}.pem"))
        args = [("grpc.ssl_target_name_override", "dealer")]
        with grpc.secure_channel(
            f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca, key, cert), options=args
        ) as channel:
            stamp = ((VERSION_KEY, str(PROTOCOL_VERSION)),)
            try:
                who = channel.unary_unary(WHO, sealing(WHO, "request", None), unsealing(WHO, "reply", None))
                return str(who(b"", timeout=10, metadata=stamp).decode().split()[0])
            except grpc.RpcError as error:
                raise from_rpc_error(error, "dealer") from None

    assert raw("client") == "client/alice" and raw("party0") == "party0"
    foreign(certs, "x", "party0", [uri("ditto://client/mallory")])
    assert raw("x") == "client/mallory"
    for names in (
        [],
        [x509.DNSName("party0")],
        [uri("ditto://party0"), uri("ditto://client/x")],
        [uri("ditto://root")],
    ):
        foreign(certs, "x", "party0", names)
        with pytest.raises(CertificateError, match="dealer: "):
            raw("x")


# Files that change -------------------------------------------------------------------------------


def shown(certs: Path, port: int) -> int:
    """The serial of the certificate that the server shows to a new connection."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_cert_chain(certs / "client.pem", certs / "client.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 5) as tcp,
        context.wrap_socket(tcp, server_hostname="dealer") as s,
    ):
        found = s.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_a_servers_new_pair_needs_no_restart(certs: Path, serve: Callable[[Tls, str], int]) -> None:
    port, serial = serve(tls(certs, "dealer"), "dealer"), load_certificate(certs / "dealer.pem").serial_number
    assert shown(certs, port) == serial
    with open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client"), "client") as old:
        before = who(old)
        _, renewed = Authority(certs).issue(Identity("dealer"), [], certs / "dealer")
        assert renewed.serial_number != serial and shown(certs, port) == renewed.serial_number
        assert who(old) == before  # over the connection that stood
        with open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client"), "client") as new:
            assert who(new)[2] != before[2]


@pytest.mark.parametrize("damage", ["key", "role", "authority", "expired", "half"])
def test_files_that_do_not_check_change_nothing(
    damage: str, certs: Path, tmp_path: Path, serve: Callable[[Tls, str], int]
) -> None:
    port, serial = serve(tls(certs, "dealer"), "dealer"), load_certificate(certs / "dealer.pem").serial_number
    init_certs(tmp_path / "other", [])
    if damage == "key":  # a renewal between its two files
        shutil.copy(tmp_path / "other" / "dealer.key", certs / "dealer.key")
    elif damage == "role":
        Authority(certs).issue(Identity("party0"), [], certs / "dealer")
    elif damage == "authority":
        for name in ("dealer.key", "dealer.pem"):
            shutil.copy(tmp_path / "other" / name, certs / name)
    elif damage == "expired":
        Authority(certs).issue(Identity("dealer"), [], certs / "dealer", dt.timedelta(minutes=-1))
    else:
        (certs / "dealer.pem").write_bytes((certs / "dealer.pem").read_bytes()[:200])
    assert shown(certs, port) == serial
    _, renewed = Authority(certs).issue(Identity("dealer"), [], certs / "dealer")
    assert shown(certs, port) == renewed.serial_number


def test_a_callers_new_pair_needs_no_restart(certs: Path, serve: Callable[[Tls, str], int]) -> None:
    port, serial = serve(tls(certs, "dealer"), "dealer"), load_certificate(certs / "client.pem").serial_number
    going, ask = threading.Event(), iter([b"1", b"2"])

    def requests() -> Iterator[bytes]:
        yield next(ask)
        assert going.wait(10)
        yield next(ask)

    with open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client"), "client") as channel:
        assert who(channel)[:2] == ("client/alice", serial)
        stream = channel.stream_stream("/test.Echo/Stay")(requests(), timeout=20)
        assert next(stream) == b"1"
        _, renewed = Authority(certs).issue(ALICE, [], certs / "client")
        assert who(channel)[:2] == ("client/alice", renewed.serial_number)
        (certs / "client.pem").write_text("damaged")
        assert who(channel)[:2] == ("client/alice", renewed.serial_number)
        going.set()
        assert list(stream) == [b"2"]  # the call under way went on


# Revocation --------------------------------------------------------------------------------------


def later(certs: Path) -> bytes:
    """A list of this authority that would be the next but one, with somebody else's certificate alone."""
    for _ in range(3):
        _, somebody = Authority(certs).issue(Identity("client", "carol"), [], certs / "client-carol")
        Authority(certs).revoke(somebody)
    return (certs / "crl.pem").read_bytes()


def test_revoked_callers_are_refused(certs: Path, tmp_path: Path, serve: Callable[[Tls, str], int]) -> None:
    authority, path = Authority(certs), certs / "crl.pem"
    authority.issue(Identity("client", "bob"), [], certs / "client-bob")
    port = serve(tls(certs, "dealer", "crl.pem"), "dealer")
    init_certs(tmp_path / "other", [])
    with (
        open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client"), "client") as alice,
        open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client-bob"), "client") as bob,
    ):
        assert who(alice)[0] == "client/alice" and who(bob)[0] == "client/bob"
        empty = path.read_bytes()
        assert authority.revoke(load_certificate(certs / "client-bob.pem"))
        listed = path.read_bytes()

        def only_bob() -> None:
            with pytest.raises(CertificateError, match="client/bob was revoked"):  # over the connection that stands
                who(bob)
            assert who(alice)[0] == "client/alice"

        only_bob()
        other = later(tmp_path / "other")
        shutil.copytree(certs, tmp_path / "copy")
        (tmp_path / "copy" / "crl.pem").write_bytes(empty)
        tampered = bytearray(x509.load_pem_x509_crl(later(tmp_path / "copy")).public_bytes(serialization.Encoding.DER))
        tampered[-1] ^= 1
        forged = x509.load_der_x509_crl(bytes(tampered)).public_bytes(serialization.Encoding.PEM)
        for bad in (b"", listed[:100], forged, other, empty):
            path.write_bytes(bad)  # damaged, not signed, another authority's, older: the last good one stays
            only_bob()
        path.unlink()
        only_bob()
        path.write_bytes(listed)
        assert authority.revoke(load_certificate(certs / "client.pem"))
        with pytest.raises(CertificateError, match="client/alice was revoked"):
            who(alice)
        _, renewed = authority.issue(ALICE, [], certs / "client")
        assert who(alice)[:2] == ("client/alice", renewed.serial_number)  # the certificate is revoked, not the name


@pytest.mark.parametrize("state", ["missing", "damaged", "foreign"])
def test_no_server_starts_without_its_list(state: str, certs: Path, tmp_path: Path) -> None:
    path = certs / "crl.pem"
    if state == "missing":
        path.unlink()
    elif state == "damaged":
        path.write_bytes(secrets.token_bytes(100))
    else:
        init_certs(tmp_path / "other", [])
        shutil.copy(tmp_path / "other" / "crl.pem", path)
    with pytest.raises(CertificateError, match=r"crl\.pem"):
        build_server("127.0.0.1:0", tls(certs, "dealer", "crl.pem"), "dealer", {})


# A dead peer is no certificate error -------------------------------------------------------------

SERVER = """
import sys
from pathlib import Path
from ditto.net.config import Tls
from ditto.net.transport import PROTOCOL_VERSION, VERSION_KEY, build_server
certs = Path(sys.argv[1])
files = Tls(ca=certs / "ca.pem", cert=certs / "dealer.pem", key=certs / "dealer.key")
server, port = build_server("127.0.0.1:0", files, "dealer", {})
server.start()
print(port, flush=True)
server.wait_for_termination()
"""


@pytest.fixture()
def process(certs: Path) -> Iterator[tuple[int, int]]:
    """A dealer in a process of its own: its id and its port."""
    child = subprocess.Popen([sys.executable, "-c", SERVER, str(certs)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.pid, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("connected", [False, True])
def test_a_stopped_or_killed_server(
    end: signal.Signals, connected: bool, certs: Path, process: tuple[int, int]
) -> None:
    """A stopped one still accepts connections, and never answers the handshake."""
    pid, port = process
    with open_channel(f"127.0.0.1:{port}", "dealer", tls(certs, "client"), "client") as channel:
        if connected:
            connect(channel, "dealer", 10)
        os.kill(pid, end)
        if end is signal.SIGKILL:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        for timeout in (0.5, 3):  # before and after gRPC gives up on the handshake
            with pytest.raises(PeerAbsent, match="dealer"):
                connect(channel, "dealer", timeout)
        if connected:
            return
        for running, kind in ((False, PeerAbsent), (True, PeerLost)):
            with pytest.raises(grpc.RpcError) as caught:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
            assert type(from_rpc_error(caught.value, "dealer", running)) is kind


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half(connection: socket.socket) -> None:
    connection.sendall(b"\x16\x03\x03\x00\x7a\x02\x00\x00")
    time.sleep(0.1)


@pytest.mark.parametrize("how", [lambda connection: None, reset, half], ids=["closed", "reset", "in the middle"])
def test_a_server_that_ends_during_the_handshake(how: Callable[[socket.socket], None], certs: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(10_000)
                    how(connection)

        threading.Thread(target=accept, daemon=True).start()
        with (
            open_channel(f"127.0.0.1:{listener.getsockname()[1]}", "dealer", tls(certs, "client"), "client") as channel,
            pytest.raises(DittoError) as caught,
        ):
            connect(channel, "dealer", 1)
        listener.shutdown(socket.SHUT_RDWR)
    assert type(caught.value) is PeerAbsent

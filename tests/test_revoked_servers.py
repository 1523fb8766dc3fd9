"""A caller with a revocation list reaches no revoked server, and one that was renewed without being told."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ditto.errors import CertificateError, PeerAbsent
from ditto.net import channels
from ditto.net.certs import Authority, init_certs, load_certificate
from ditto.net.config import Tls
from ditto.net.identity import Identity
from ditto.net.transport import build_server, connect, open_channel

DEALER = Identity("dealer")


@pytest.fixture()
def certs(tmp_path: Path) -> Path:
    init_certs(tmp_path / "certs", [], client="alice")
    return tmp_path / "certs"


def caller(certs: Path) -> Tls:
    return Tls(ca=certs / "ca.pem", cert=certs / "client.pem", key=certs / "client.key", crl=certs / "crl.pem")


class Servers:
    """Servers with any pair, each on a port of its own or on a given one."""

    def __init__(self) -> None:
        self._running: list[grpc.Server] = []

    def start(self, pair: Path, port: int = 0) -> int:
        server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        checks = health.HealthServicer()
        checks.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        pems = pair.with_suffix(".key").read_bytes(), pair.with_suffix(".pem").read_bytes()
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pems]))
        server.start()
        self._running.append(server)
        return bound

    def stop(self) -> None:
        for server in self._running:
            server.stop(None).wait()
        self._running.clear()


@pytest.fixture()
def servers() -> Iterator[Servers]:
    started = Servers()
    yield started
    started.stop()


def to(port: int, certs: Path) -> grpc.Channel:
    return open_channel(f"127.0.0.1:{port}", "dealer", caller(certs), "client")


def stolen(certs: Path) -> Path:
    """The dealer's pair as a thief keeps it; the dealer has another by now, and the old one is revoked."""
    for ending in (".pem", ".key"):
        shutil.copy(certs / f"dealer{ending}", certs / f"stolen{ending}")
    authority = Authority(certs)
    authority.issue(DEALER, [], certs / "dealer")
    authority.revoke(load_certificate(certs / "stolen.pem"))
    return certs / "stolen"


def test_a_revoked_server_is_refused_before_a_request_leaves(certs: Path, servers: Servers) -> None:
    thief, honest = servers.start(stolen(certs)), servers.start(certs / "dealer")
    with to(thief, certs) as channel:
        with pytest.raises(CertificateError, match="certificate of dealer was revoked") as caught:
            connect(channel, "dealer", 5)
        assert caught.value.peer == "dealer"
        stream = channel.unary_stream("/test.Echo/Stream")(b"", timeout=5)
        with pytest.raises(CertificateError, match="revoked"):
            next(stream)
    with to(honest, certs) as channel:
        connect(channel, "dealer", 5)


def test_a_list_that_comes_later_counts_for_the_next_call(certs: Path) -> None:
    """And so does the new pair that the server then has, without a restart of either."""
    authority = Authority(certs)
    pair = Tls(ca=certs / "ca.pem", cert=certs / "dealer.pem", key=certs / "dealer.key")
    server, port = build_server("127.0.0.1:0", pair, "dealer", {})
    server.start()
    try:
        with to(port, certs) as channel:
            connect(channel, "dealer", 5)
            authority.revoke(load_certificate(certs / "dealer.pem"))
            with pytest.raises(CertificateError, match="revoked"):  # over the connection that stands
                connect(channel, "dealer", 5)
            authority.issue(DEALER, [], certs / "dealer")
            connect(channel, "dealer", 5)
    finally:
        server.stop(None)


class Switch:
    """An address behind which connections go to one port first and to another one later."""

    def __init__(self, *ports: int) -> None:
        self._ports = list(ports)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.passed: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            port = self._ports.pop(0) if len(self._ports) > 1 else self._ports[0]
            self.passed.append(port)
            far = socket.create_connection(("127.0.0.1", port))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_thief_that_relays_the_look_does_not_get_the_call(certs: Path, servers: Servers) -> None:
    """The look goes to the true dealer, the connection to who has its revoked pair: that pair is not the pinned one."""
    thief, honest = servers.start(stolen(certs)), servers.start(certs / "dealer")
    switch = Switch(honest, thief)
    try:
        with to(switch.port, certs) as channel, pytest.raises(CertificateError):
            connect(channel, "dealer", 5)
        assert switch.passed[:2] == [honest, thief]
    finally:
        switch.close()


def test_a_pinned_certificate_signs_no_other(certs: Path, servers: Servers) -> None:
    """It takes the authority's place in the connection; it is no authority."""
    now = load_certificate(certs / "dealer.pem")
    key = serialization.load_pem_private_key((certs / "dealer.key").read_bytes(), None)
    below = (
        x509.CertificateBuilder()
        .subject_name(now.subject).issuer_name(now.subject).public_key(now.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.not_valid_before_utc).not_valid_after(now.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("dealer")]), critical=False)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]
    )  # fmt: skip
    (certs / "below.pem").write_bytes(below.public_bytes(serialization.Encoding.PEM))
    shutil.copy(certs / "dealer.key", certs / "below.key")
    switch = Switch(servers.start(certs / "dealer"), servers.start(certs / "below"))
    try:
        with to(switch.port, certs) as channel, pytest.raises(CertificateError):
            connect(channel, "dealer", 5)
    finally:
        switch.close()


def test_a_server_that_was_renewed_and_started_again_is_met(certs: Path, servers: Servers) -> None:
    """No call fails but those to a server that is not there."""
    port = servers.start(certs / "dealer")
    with to(port, certs) as channel:
        connect(channel, "dealer", 5)
        servers.stop()
        with pytest.raises(PeerAbsent):
            connect(channel, "dealer", 1)
        for _ in range(2):
            Authority(certs).issue(DEALER, [], certs / "dealer")
            servers.start(certs / "dealer", port)
            connect(channel, "dealer", 5)
            servers.stop()


def test_channels_of_one_process_look_once(certs: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when the server has another certificate, or the one that they remember is revoked."""
    looks: list[str] = []
    look: Callable[..., None] = channels.Pin.look
    monkeypatch.setattr(channels.Pin, "look", lambda self, *args: (looks.append(""), look(self, *args))[1])
    port = servers.start(certs / "dealer")
    for _ in range(3):
        with to(port, certs) as channel:
            connect(channel, "dealer", 5)
    assert len(looks) == 1
    servers.stop()
    before = load_certificate(certs / "dealer.pem")
    Authority(certs).issue(DEALER, [], certs / "dealer")
    servers.start(certs / "dealer", port)
    with to(port, certs) as channel:
        connect(channel, "dealer", 5)
    assert len(looks) == 2
    Authority(certs).revoke(before)
    with to(port, certs) as channel:
        connect(channel, "dealer", 5)
    assert len(looks) == 2
    Authority(certs).revoke(load_certificate(certs / "dealer.pem"))
    with to(port, certs) as channel, pytest.raises(CertificateError, match="revoked"):
        connect(channel, "dealer", 5)
    assert len(looks) == 3


def test_a_server_that_is_not_there_yet(certs: Path, servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with to(port, certs) as channel:
        with pytest.raises(PeerAbsent, match="dealer does not answer"):
            connect(channel, "dealer", 0.3)
        servers.start(certs / "dealer", port)
        connect(channel, "dealer", 5)


def test_a_stopped_server_is_looked_at_once_for_all_who_wait(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers: ten calls take as long as one."""
    monkeypatch.setattr(channels, "HANDSHAKE_S", 1.0)
    looks: list[float] = []
    look: Callable[..., None] = channels.Pin.look

    def counted(self: channels.Pin, *args: object) -> None:
        looks.append(0.0)
        look(self, *args)

    monkeypatch.setattr(channels.Pin, "look", counted)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        to(int(silent.getsockname()[1]), certs) as channel,
        futures.ThreadPoolExecutor(10) as pool,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        ready = threading.Barrier(10)

        def call(_: int) -> grpc.StatusCode:
            ready.wait(10)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            code: grpc.StatusCode = caught.value.code()
            return code

        assert set(pool.map(call, range(10))) == {grpc.StatusCode.UNAVAILABLE}
    assert len(looks) <= 2  # one more for who arrived after the first had ended


@pytest.mark.parametrize("holds", ["party0", "client", "other"])
def test_what_is_not_the_dealers_is_refused(holds: str, certs: Path, tmp_path: Path, servers: Servers) -> None:
    pair = certs / holds
    if holds == "other":
        init_certs(tmp_path / "other", [])
        pair = tmp_path / "other" / "dealer"
    with to(servers.start(pair), certs) as channel, pytest.raises(CertificateError, match="handshake"):
        connect(channel, "dealer", 5)


def test_no_caller_starts_without_its_list(certs: Path) -> None:
    (certs / "crl.pem").unlink()
    with pytest.raises(CertificateError, match=r"crl\.pem"):
        to(1, certs)

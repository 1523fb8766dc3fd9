"""`ditto doctor`: what is well is called so, and what is not is named, with its exit code. 25 s, most of them the start
of one cluster."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import socket
import ssl
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client import said
from ditto.client.local_cluster import Cluster, embedded
from ditto.doctor import certificates, machine, own, probe, servers
from ditto.doctor.finding import Finding, Verdict, exit_code, ok
from ditto.net.certs import Authority, init_certs
from ditto.net.config import Tls
from ditto.net.identity import Identity
from ditto.net.tls import load_tls
from ditto.ring.kernels import kernel_of
from ditto.service.about import about

SERVERS = ("dealer", "party0", "party1", "coordinator")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with embedded() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are measured once; other tests say whether they are right."""
    monkeypatch.setattr(machine, "kernels", lambda: ok(machine.ME, "kernels", "as ever"))
    monkeypatch.delenv("DITTO_CONFIG", raising=False)


def doctor(*args: str) -> tuple[dict[str, Any], int]:
    result = CliRunner().invoke(app, ["doctor", "--json", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout), result.exit_code


def of(findings: list[Finding], subject: str, check: str) -> Finding:
    return next(f for f in findings if (f.subject, f.check) == (subject, check))


def written(cluster: Cluster, tmp_path: Path, **changes: Any) -> Path:
    """A client's file that differs in these keys."""
    raw = yaml.safe_load(cluster.config_path("client").read_text()) | changes
    path = tmp_path / "client.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_cluster_that_is_well(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(cluster.root))
    for _ in range(20):  # party 1 may still be calling party 0
        document, code = doctor()
        wrong = [f for f in document["findings"] if f["verdict"] == "failed"]
        if all(f["check"] != "peer link" for f in wrong):
            break
    assert not wrong and code == 0, wrong
    found = {(f["subject"], f["check"]): f["found"] for f in document["findings"]}
    for role in SERVERS:
        for check in ("name", "port", "TLS", "identity", "health", "version", "clock"):
            assert (role, check) in found, (role, check)
    assert "client/" in found["client", "certificate"]
    links = {("party0", "to dealer"), ("party1", "to dealer"), ("party1", "to party0"), ("party0", "to party1")}
    links |= {("coordinator", f"to {role}") for role in ("party0", "party1", "dealer")}
    assert links <= found.keys()
    assert all("a call takes" in found[link] for link in links if link != ("party0", "to party1"))
    key = cluster.config_path("client").parent.parent / "certs" / "client.key"
    assert key.read_text().splitlines()[1] not in json.dumps(document)

    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0 and "0 failed" in shown.stdout


@pytest.mark.parametrize("role", SERVERS)
def test_a_server_s_own_configuration(cluster: Cluster, role: str) -> None:
    findings = list(own.of_server(cluster.config_path(role)))
    assert exit_code(findings) == 0, findings
    assert "this server runs there" in of(findings, role, "port").found
    assert "under this key" in of(findings, role, "storage key").found
    assert {f.subject for f in findings} == {role, *own.CALLS[role]}
    assert all(of(findings, peer, "health").verdict is Verdict.ok for peer in own.CALLS[role])


def test_a_wrong_storage_key_and_a_taken_port(cluster: Cluster, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "key").write_text("ab" * 32)
        raw = yaml.safe_load(cluster.config_path("party0").read_text())
        raw |= {"storage_key": str(tmp_path / "key"), "listen": f"127.0.0.1:{taken.getsockname()[1]}"}
        (tmp_path / "party0.yaml").write_text(yaml.safe_dump(raw))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe, "STEP_S", 0.3)
            findings = list(own.of_server(tmp_path / "party0.yaml"))
    assert of(findings, "party0", "storage key").exit_code == 22
    assert of(findings, "party0", "port").exit_code == 24
    assert "abab" not in str(findings)


def test_nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "none"))
    document, code = doctor()
    assert code == 0 and document["verdict"] in ("ok", "warning")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["role: client\n  bad: [", "role: dealer\ntls: 3\n", "- a\n- b\n", "\x00"])
def test_wrong_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert doctor("--config", str(path))[1] == 22
    assert doctor("--server", str(path))[1] == 22
    assert doctor("--config", str(tmp_path / "absent.yaml"))[1] == 22


def test_a_home_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "file"))
    assert doctor()[1] == 27
    monkeypatch.setenv("DITTO_HOME", "/proc/ditto")  # where root may write nothing, either
    document, code = doctor()
    assert code == 27 and any(f["check"] == "DITTO_HOME" and f["advice"] for f in document["findings"])


def test_little_space_and_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    verdicts = {}
    for free in (1 << 40, 1 << 30, 1 << 20):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(1 << 41, 0, free))
        verdicts[free] = list(machine.directory("x", "dir", tmp_path))[-1].verdict
    assert list(verdicts.values()) == [Verdict.ok, Verdict.warning, Verdict.failed]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 1024))
    assert machine.descriptors().verdict is Verdict.warning


def test_packages_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages().verdict is Verdict.ok
    monkeypatch.setattr(machine.metadata, "requires", lambda _: ["torch>=99.1", "no-such-package>=1", "x>=1; extra"])
    found = machine.packages()
    assert found.exit_code == 22
    assert "torch" in found.found and "no-such-package is missing" in found.found


def pair(stem: Path, ca: Path) -> Tls:
    return Tls(ca=ca, cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key"))


def issued(cluster: Cluster, tmp_path: Path, who: Identity, **lifetime: float) -> Tls:
    Authority(cluster.certs).issue(who, [], tmp_path / who.file, dt.timedelta(**lifetime))
    return pair(tmp_path / who.file, cluster.certs / "ca.pem")


def test_own_certificate(cluster: Cluster, tmp_path: Path) -> None:
    expired = issued(cluster, tmp_path, Identity("client", "old"), seconds=-1)
    assert [f.exit_code for f in certificates.own("client", expired, "client")] == [15]
    soon = issued(cluster, tmp_path, Identity("client", "soon"), days=3)
    first = next(iter(certificates.own("client", soon, "client")))
    assert first.verdict is Verdict.warning and "client/soon" in first.found
    soon.key.chmod(0o644)
    assert of(list(certificates.own("client", soon, "client")), "client", "key").verdict is Verdict.warning
    document, code = doctor("--config", str(written(cluster, tmp_path, tls={k: str(v) for k, v in expired if v})))
    assert code == 15 and document["findings"][-1]["check"] == "certificate"  # no server is called with it


def test_another_authority(cluster: Cluster, tmp_path: Path) -> None:
    """Servers of another authority than the client's are told apart from those that refuse the client."""
    init_certs(tmp_path / "other", [], client="eve")
    other = pair(tmp_path / "other" / "client", tmp_path / "other" / "ca.pem")
    config = cluster.client_config()
    ways = servers.reach(config.peers, other, "client", ("party0",))
    assert ways["party0"].stopped == "TLS"
    assert "another authority" in ways["party0"].findings[-1].found and "party0" in ways["party0"].findings[-1].found
    assert ways["party0"].findings[-1].exit_code == 15
    # it trusts the servers; they do not trust it
    half = probe.Way("party0", config.peers.of("party0"), other, "client")
    pems = load_tls(other, "client")._replace(ca=(cluster.certs / "ca.pem").read_bytes())
    half.go(pems)
    assert half.stopped == "TLS" and "refuses this side's certificate" in half.findings[-1].found


def test_exchanged_addresses(cluster: Cluster) -> None:
    config = cluster.client_config()
    way = probe.Way("party0", config.peers.of("party1"), config.tls, "client").go(load_tls(config.tls, "client"))
    assert way.findings[-1].exit_code == 15 and "is not for party0" in way.findings[-1].found


@contextlib.contextmanager
def listener(answer: Any) -> Iterator[str]:
    """Takes connections, and gives each to `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_what_else_may_be_at_an_address(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEP_S", 1.0)
    tls = cluster.client_config().tls
    pems = load_tls(tls, "client")

    def stopped(address: str) -> Finding:
        way = probe.Way("party0", address, tls, "client").go(pems)
        assert way.channel is None
        return way.findings[-1]

    expired = issued(cluster, tmp_path, Identity("party0"), seconds=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(expired.cert, expired.key)
    with listener(lambda tcp: context.wrap_socket(tcp, server_side=True).close()) as address:
        found = stopped(address)
        assert (found.check, found.exit_code) == ("TLS", 15) and "has expired" in found.found
    with listener(lambda tcp: tcp.sendall(b"HTTP/1.1 400 no\r\n\r\n")) as address:
        found = stopped(address)
        assert (found.check, found.exit_code) == ("TLS", 33) and "no TLS" in found.found
    with listener(lambda tcp: threading.Event().wait(1.5)) as address:  # takes the connection, and says nothing
        found = stopped(address)
        assert (found.check, found.exit_code) == ("TLS", 16)
    assert stopped(address).check == "port"
    assert stopped("no-such-host.invalid:1").check == "name"


def test_a_clock_that_is_off(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later:
        @staticmethod
        def time() -> float:
            return real() + 100

    real = said.time.time
    monkeypatch.setattr(said, "time", Later)
    findings = list(servers.of_client(cluster.client_config()))
    for role in SERVERS:
        clock = of(findings, role, "clock")
        assert clock.verdict is Verdict.warning and "behind" in clock.found, clock
    assert exit_code(findings) == 0


def test_what_a_server_says_of_itself() -> None:
    kernel = kernel_of(64)
    said_now = about()
    assert {k.bits: k.name for k in said_now.kernels}[64] == kernel
    found = servers._about("party0", said._about(said_now), 0.0)
    assert [f.verdict for f in found] == [Verdict.ok] * 3  # version, clock, kernels


def test_of_an_earlier_version() -> None:
    about = said.About("0.0.9", 5, 0.0, {})
    assert [f.verdict for f in servers._about("party0", None, None)] == [Verdict.warning]
    assert [f.exit_code for f in servers._about("party0", about, None)] == [17]


def test_a_stopped_party(cluster: Cluster) -> None:
    """The last test of this cluster."""
    pid = next(p.pid for p in cluster.status() if p.role == "party1")
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)
    document, code = doctor("--config", str(cluster.config_path("client")))
    assert code == 16
    wrong = {(f["subject"], f["check"]) for f in document["findings"] if f["verdict"] == "failed"}
    assert {("party1", "port"), ("coordinator", "to party1")} <= wrong
    assert all(f["advice"] for f in document["findings"] if f["verdict"] != "ok")
    assert ("party0", "health") not in wrong and ("dealer", "health") not in wrong

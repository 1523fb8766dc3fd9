"""The command line on real local processes: start, repair, refuse, stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from ditto.cli import app, demo
from ditto.client.local_cluster import Cluster, _free_ports, embedded, home
from ditto.errors import ClusterError
from ditto.names import SERVERS
from ditto.net.certs import init_certs
from ditto.net.processor import features, threads_here, usable_cores
from ditto.ring.kernels import KERNELS


def run(*args: str, code: int = 0) -> tuple[Any, str]:
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else None, result.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DITTO_CONFIG", raising=False)
        Cluster(home()).configure(ports=_free_ports(), threads="auto")
        run("cluster", "up")
        try:
            yield
        finally:
            run("cluster", "down")


def pids() -> dict[str, int]:
    return {p["role"]: p["pid"] for p in run("cluster", "status")[0]["processes"]}


@pytest.mark.usefixtures("running")
def test_servers_say_what_they_compute_with() -> None:
    """Each has chosen by itself, before anything was asked of it: all kernels, for its own threads."""
    found = run("cluster", "status")[0]["computing"]
    threads = threads_here("127.0.0.1:1", ["127.0.0.1:1"] * 3)
    assert found.keys() == {"dealer", "party0", "party1"}
    for server in found.values():
        assert (server["threads"], server["cores"], server["features"]) == (threads, usable_cores(), features())
        assert server["kernels"].keys() == {"16", "32", "64"} and set(server["kernels"].values()) <= set(KERNELS)
    shown = CliRunner().invoke(app, ["cluster", "status"]).stdout
    lines = shown.splitlines()
    for role, server in found.items():
        at = next(i for i, line in enumerate(lines) if role in line and "threads" in line)
        assert lines[at].endswith(f": threads {threads}, cores {usable_cores()}")
        assert lines[at + 1].strip() == (", ".join(features()) or "baseline")
        assert lines[at + 2].strip() == ", ".join(f"{bits} bits {name}" for bits, name in server["kernels"].items())


def test_threads_that_are_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    for wrong in ("0", "many", "1025", "9" * 5000):
        assert "auto, or a number" in run("cluster", "up", "--threads", wrong, code=2)[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("running")
def test_up_repairs_and_keeps_what_runs() -> None:
    before = pids()
    os.kill(before["party0"], signal.SIGKILL)
    psutil.Process(before["party0"]).wait(10)
    status = run("cluster", "status")[0]
    assert not status["serving"]
    assert {p["role"]: p["state"] for p in status["processes"]}["party0"] == "stopped"
    assert run("cluster", "up")[0]["serving"]
    after = pids()
    assert after.pop("party0") != before.pop("party0")
    assert after == before


@pytest.mark.usefixtures("running")
def test_no_models_and_an_unknown_one() -> None:
    assert run("model", "list", "--config", str(Cluster(home()).config_path("client")))[0] == []
    run("infer", "--model", "absent", "--text", "hi", code=12)


@pytest.mark.usefixtures("running")
def test_certificates_of_another_authority(tmp_path: Path) -> None:
    cluster = Cluster(home())
    init_certs(tmp_path / "certs", [])
    config = tmp_path / "client.yaml"
    config.write_text(cluster.config_path("client").read_text().replace(str(cluster.certs), str(tmp_path / "certs")))
    _, stderr = run("model", "list", "--config", str(config), code=15)
    assert "coordinator" in stderr
    run("model", "list", "--config", str(cluster.config_path("client")))


@pytest.mark.usefixtures("running")
def test_an_absent_coordinator_is_named(tmp_path: Path) -> None:
    cluster = Cluster(home())
    port = cluster.client_config().peers.coordinator.rsplit(":", 1)[1]
    config = tmp_path / "client.yaml"
    text = cluster.config_path("client").read_text().replace(port, str(_free_ports()["coordinator"]))
    config.write_text(text + "connect_timeout_s: 1\n")
    _, stderr = run("model", "list", "--config", str(config), code=16)
    assert "coordinator" in stderr


def test_embedded_serves_the_demo_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[list[str]] = []
    with embedded(waiting=late.append) as cluster:
        assert late and all(set(roles) <= set(SERVERS) for roles in late), "who starts hears what it waits for"
        processes = cluster.status()
        assert [p.state for p in processes] == ["serving"] * 4
        monkeypatch.setattr(demo, "servers", lambda threads, quiet: contextlib.nullcontext(cluster))
        good, bad = run("demo", "--text", "A warm and funny film.", "--text", "I was bored.")[0]["sentences"]
        assert (good["label"], bad["label"]) == ("positive", "negative")
        for row in (good, bad):
            assert row["plaintext"]["label"] == row["label"]
            assert row["plaintext"]["probability"] == pytest.approx(row["probability"], abs=0.1)
        assert all((p.peak_rss or 0) > 10_000_000 for p in processes)
    assert not cluster.root.exists()
    assert not any(psutil.pid_exists(p.pid or 0) and psutil.Process(p.pid).status() != "zombie" for p in processes)


# Whose processes ---------------------------------------------------------------------------------


def servers_of(cluster: Cluster) -> list[int]:
    """Every process of this machine that serves one of the cluster's configurations."""
    paths = {str(cluster.config_path(role)) for role in SERVERS}
    return [p.pid for p in psutil.process_iter(["cmdline"]) if paths & set((p.info["cmdline"] or [])[-1:])]


def kill(left: list[int]) -> None:
    """What a failed test left."""
    for pid in left:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture()
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports())
    yield cluster
    kill(servers_of(cluster))


@pytest.mark.parametrize(("held", "code"), [(1.0, None), (30.0, ClusterError)])
def test_a_port_that_a_dead_server_still_holds(cluster: Cluster, held: float, code: type[ClusterError] | None) -> None:
    """A killed process's sockets are closed with its last thread, which may be later than it is gone."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", int(cluster.client_config().peers.dealer.rsplit(":", 1)[1])))
        listening.listen()
        released = threading.Timer(held, listening.close)
        released.start()
        try:
            with contextlib.nullcontext() if code is None else pytest.raises(code, match="dealer is taken"):
                cluster.up()
        finally:
            released.cancel()
    assert len(cluster.down()) == (len(SERVERS) if code is None else 0)


@contextlib.contextmanager
def sleeping() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        try:
            yield child.pid
            assert child.poll() is None
        finally:
            child.kill()


def state_of(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cluster.root / "cluster.json").read_text())
    return found


def test_two_ups_at_once_start_one_cluster(tmp_path: Path) -> None:
    """On a home that nobody has set up yet. Both wait until the lock is free, and then go on at once."""
    cluster, ports = Cluster(tmp_path), _free_ports()
    text = "import sys\nfrom ditto.cli import app\nfrom ditto.cli.common import note\n"
    text += f"from ditto.client.local_cluster import Cluster, home\nCluster(home(), note).configure(ports={ports})\n"
    text += "app(['cluster', 'up', '--json'])"
    command, environment = [sys.executable, "-c", text], os.environ | {"DITTO_HOME": str(tmp_path)}
    try:
        with cluster._alone():
            ups = [subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) for _ in range(2)]
            for up in ups:
                assert up.stderr and up.stderr.readline() == "waiting for another command\n"
        said = [up.communicate(timeout=240) for up in ups]
        assert [up.returncode for up in ups] == [0, 0], said
        found = [{p["role"]: p["pid"] for p in json.loads(out)["processes"]} for out, _ in said]
        assert found[0] == found[1] and set(servers_of(cluster)) == set(found[0].values())
        assert len(cluster.down()) == 4 and not servers_of(cluster)
    finally:
        kill(servers_of(cluster))


def test_a_command_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    said: list[str] = []
    cluster = Cluster(tmp_path, said.append)
    with Cluster(tmp_path)._alone(), pytest.raises(ClusterError, match="at work on"), cluster._alone(0.1):
        raise AssertionError
    assert said == ["waiting for another command"]
    with cluster._alone(0.1):
        pass
    assert len(said) == 1


def test_doctored_records(cluster: Cluster) -> None:
    """A start time of a clock that moved; a process id that was used again; one server killed; a damaged record."""
    cluster.up()
    state = state_of(cluster)
    doctored = {role: entry | {"started": time.time() - 1000} for role, entry in state.items()}
    (cluster.root / "cluster.json").write_text(json.dumps(doctored))
    assert [p.state for p in cluster.status()] == ["serving"] * 4
    os.kill(state["party1"]["pid"], signal.SIGKILL)
    psutil.Process(state["party1"]["pid"]).wait(10)
    with sleeping() as foreign:
        doctored["party1"] = {"pid": foreign}
        (cluster.root / "cluster.json").write_text(json.dumps(doctored))
        assert cluster.unconfirmed() == {"party1": foreign}
        assert cluster.down() == ["dealer", "party0", "coordinator"]
        assert cluster.unconfirmed() == {"party1": foreign} and not servers_of(cluster)
    cluster.up()
    assert cluster.unconfirmed() == {} and len(servers_of(cluster)) == 4
    good = (cluster.root / "cluster.json").read_bytes()
    (cluster.root / "cluster.json").write_bytes(good[:-1])
    for change in (cluster.up, cluster.down):
        with pytest.raises(ClusterError, match=r"cluster\.json cannot be read"):
            change()
    (cluster.root / "cluster.json").write_bytes(good)
    assert len(cluster.down()) == 4 and not (cluster.root / "cluster.json").exists()


def test_a_server_of_the_same_module_elsewhere_is_not_ours(cluster: Cluster) -> None:
    text, other = "import time; time.sleep(60)", cluster.root / "other.yaml"
    with subprocess.Popen([sys.executable, "-c", text, "-m", "parties.party", str(other)]) as child:
        (cluster.root / "cluster.json").write_text(json.dumps({"party0": {"pid": child.pid}}))
        assert cluster.down() == [] and child.poll() is None
        child.kill()


def test_a_failed_start_leaves_only_what_ran_before(cluster: Cluster) -> None:
    path = cluster.config_path("coordinator")
    good = path.read_text()
    path.write_text(good + "nonsense: 1\n")
    with pytest.raises(ClusterError, match=r"coordinator stopped while starting[\s\S]*nonsense"):
        cluster.up()
    assert not servers_of(cluster) and not (cluster.root / "cluster.json").exists()
    path.write_text(good)
    cluster.up()
    before = state_of(cluster)
    for role in ("party0", "coordinator"):
        killed = psutil.Process(before.pop(role)["pid"])
        killed.kill()
        killed.wait(10)
    path.write_text(good + "nonsense: 1\n")
    with pytest.raises(ClusterError, match="coordinator stopped"):
        cluster.up()
    assert state_of(cluster) == before
    assert set(servers_of(cluster)) == {entry["pid"] for entry in before.values()}
    assert cluster.down() == ["dealer", "party1"]

"""The command line on real local processes: start, repair, refuse, stop."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client.local_cluster import Cluster, _free_ports, embedded, home
from ditto.net.certs import init_certs


def run(*args: str, code: int = 0) -> tuple[Any, str]:
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else None, result.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DITTO_CONFIG", raising=False)
        Cluster(home()).configure(ports=_free_ports())
        run("cluster", "up")
        try:
            yield
        finally:
            run("cluster", "down")


def pids() -> dict[str, int]:
    return {p["role"]: p["pid"] for p in run("cluster", "status")[0]["processes"]}


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


def test_embedded_leaves_nothing() -> None:
    with embedded() as cluster:
        processes = cluster.status()
        assert [p.state for p in processes] == ["serving"] * 4
        assert all((p.peak_rss or 0) > 10_000_000 for p in processes)
    assert not cluster.root.exists()
    assert not any(psutil.pid_exists(p.pid or 0) and psutil.Process(p.pid).status() != "zombie" for p in processes)

"""`ditto serve` as a process of its own: its start, its note, its end. About 8 s of CPU, most of it imports."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from ditto.cli import app
from ditto.cli.serve import _bring
from ditto.client import store
from ditto.errors import BadDescription
from ditto.net import certs
from ditto.serve import place


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a client's configuration of servers that are not there."""
    certs.init_certs(tmp_path / "certs", [], client="alice")
    peers = {
        role: f"127.0.0.1:{port}"
        for role, port in zip(("coordinator", "party0", "party1", "dealer"), range(1, 5), strict=True)
    }
    pems = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    tls = {name: str(tmp_path / "certs" / file) for name, file in pems.items()}
    settings = {"role": "client", "peers": peers, "tls": tls, "connect_timeout_s": 0.5}
    (tmp_path / "client.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def _start(home: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "ditto",
        "serve",
        "--port",
        "0",
        "--config",
        str(home / "client.yaml"),
        "--json",
        *options,
    ]
    environment = os.environ | {"DITTO_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        lines.append(line)
    return process, json.loads("".join(lines))


def test_its_life(home: Path) -> None:
    """Killed, its note is known to be stale; started, asked with a key, ended by a signal with exit code 0."""
    key = secrets.token_hex(16)
    (home / "key").write_text(key + "\n")
    (home / "key").chmod(0o600)
    process, said = _start(home)
    process.kill()
    process.wait()
    assert place.read(home) == said and place.running(home) is None

    process, said = _start(home, "--api-key-file", str(home / "key"))
    try:
        assert said == place.running(home) and said["pid"] == process.pid
        assert (home / place.NOTE).stat().st_mode & 0o777 == 0o600
        assert (home / "serve").stat().st_mode & 0o777 == 0o700
        assert httpx.get(f"{said['address']}/v1/models").status_code == 401
        absent = httpx.get(f"{said['address']}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=20)
        assert absent.status_code == 503 and absent.json()["error"]["code"] == "peer_absent"
        again = CliRunner().invoke(app, ["serve", "--config", str(home / "client.yaml")], env={"DITTO_HOME": str(home)})
        assert again.exit_code == 24 and said["address"] in again.stderr
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")
        assert place.running(home) is None and not (home / place.NOTE).exists() and not (home / "serve/socket").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "options, code, says",
    [
        (["--host", "0.0.0.0"], 2, "takes a key"),
        (["--host", "0.0.0.0", "--local"], 2, "takes a key"),
        (["--host", "192.0.2.1", "--api-key-file", "key"], 22, "cannot listen"),
        (["--api-key-file", "absent"], 22, "No such file"),
        (["--api-key-file", "short"], 22, "no key"),
        (["--config", "absent.yaml"], 22, "no such file"),
        (["--port", "65536"], 2, "65535"),
    ],
)
def test_it_does_not_start(tmp_path: Path, options: list[str], code: int, says: str) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    (tmp_path / "short").write_text("0123456789abcde")
    named = [str(tmp_path / one) if (tmp_path / one).exists() else one for one in options]
    found = CliRunner().invoke(app, ["serve", *named], env={"DITTO_HOME": str(tmp_path / "home")})
    assert found.exit_code == code and says in " ".join(found.output.split()), found.output


def test_models_of_servers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are imported, those aside that cannot be shared; those that are named have to be."""

    class Cluster:
        def __init__(self) -> None:
            self.shared: list[str] = []

        def model(self, name: str) -> None:
            if name == "old":
                raise BadDescription("of another version")
            self.shared.append(name)

    monkeypatch.setattr(store, "stored", lambda: [store.StoredModel(tmp_path / name) for name in ("a", "old", "z")])
    cluster: Any = Cluster()
    _bring(cluster, [])
    assert cluster.shared == ["a", "z"]
    _bring(cluster, ["z"])
    assert cluster.shared == ["a", "z", "z"]
    with pytest.raises(BadDescription):
        _bring(cluster, ["old"])


def test_a_port_that_is_taken(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        asked = ["serve", "--config", str(home / "client.yaml"), "--port", port]
        found = CliRunner().invoke(app, asked, env={"DITTO_HOME": str(home)})
    assert found.exit_code == 24 and f"port {port}" in found.output and "taken" in " ".join(found.output.split())


def test_a_directory_that_others_may_enter(home: Path) -> None:
    """Nobody can put a socket of theirs in the place of this user's."""
    (home / "serve").mkdir(mode=0o755)
    (home / "serve").chmod(0o755)
    found = CliRunner().invoke(app, ["serve", "--config", str(home / "client.yaml")], env={"DITTO_HOME": str(home)})
    assert found.exit_code == 27 and "chmod 700" in " ".join(found.output.split())

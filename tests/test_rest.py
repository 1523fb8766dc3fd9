"""Files at rest: where the key comes from, what a wrong one does, what is readable without it, what is collected."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, _free_ports, embedded
from ditto.errors import ClusterError, ConfigError
from ditto.models import encode_inputs, random_batch, random_model
from ditto.names import SERVERS
from ditto.net.config import DealerConfig, load_config
from ditto.service.leftovers import collect
from ditto.service.storage import VARIABLE, storage_of

KEY = secrets.token_hex(32)


def configured(directory: Path, **fields: Any) -> DealerConfig:
    tls = {"ca": "ca.pem", "cert": "dealer.pem", "key": "dealer.key"}
    path = directory / "dealer.yaml"
    path.write_text(yaml.safe_dump({"listen": "127.0.0.1:0", "data_dir": "data", "tls": tls} | fields))
    return load_config(path, DealerConfig)


# Keys --------------------------------------------------------------------------------------------


def test_a_key_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "key").write_text(f"{KEY}\n")
    written = storage_of(configured(tmp_path, storage_key="key")).seal(b"something", b"context")
    assert b"something" not in written
    (tmp_path / "key").unlink()
    monkeypatch.setenv(VARIABLE, KEY.upper())
    found = storage_of(configured(tmp_path))
    assert found.unseal(written, b"context") == b"something"
    assert (
        KEY not in repr(vars(configured(tmp_path))) and (tmp_path / "data" / "storage").stat().st_mode & 0o777 == 0o600
    )


def test_no_key_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"storage_key.*DITTO_STORAGE_KEY.*storage: plaintext"):
        storage_of(configured(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path}/absent cannot be read: No such file"):
        storage_of(configured(tmp_path, storage_key="absent"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", KEY[:-1], KEY + "0", KEY[:-1] + "g", f"{KEY} {KEY}", "\xff" * 64])
def test_a_malformed_key_is_not_quoted(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"{tmp_path}/key") as caught:
        storage_of(configured(tmp_path, storage_key="key"))
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=f"^{VARIABLE}: "):
        storage_of(configured(tmp_path))
    assert KEY[:8] not in str(caught.value)


def test_plaintext_is_said_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    assert b"something" in storage_of(configured(tmp_path, storage="plaintext")).seal(b"something", b"context")
    with pytest.raises(ConfigError, match="plaintext takes no storage_key"):
        configured(tmp_path, storage="plaintext", storage_key="key")
    with pytest.raises(ConfigError, match="storage: Input should be 'encrypted' or 'plaintext'"):
        configured(tmp_path, storage="none")


def test_a_directory_is_read_with_its_own_key_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = tmp_path / "plain", secrets.token_hex(32)
    plain.mkdir()
    monkeypatch.setenv(VARIABLE, KEY)
    storage_of(configured(plain, storage="plaintext"))
    storage_of(configured(tmp_path))
    with pytest.raises(ConfigError, match="plain/data are stored as plaintext"):
        storage_of(configured(plain))
    with pytest.raises(ConfigError, match=f"{tmp_path}/data are stored encrypted"):
        storage_of(configured(tmp_path, storage="plaintext"))
    monkeypatch.setenv(VARIABLE, other)
    with pytest.raises(ConfigError, match=f"{tmp_path}/data are stored under another key"):
        storage_of(configured(tmp_path))
    monkeypatch.setenv(VARIABLE, KEY)
    storage_of(configured(tmp_path))


# A cluster ---------------------------------------------------------------------------------------


def test_a_cluster_keeps_nothing_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys lie outside of what they protect; a wrong one stops the server, and harms no file."""
    description, weights, _ = random_model("bert-tiny", 1, 16)
    description = description.model_copy(update={"name": "legible"})
    with embedded() as cluster, Client(cluster.client_config()) as client:

        def ask() -> None:
            client.infer("legible", lambda p: encode_inputs(description, p, random_batch(1, 16)), 1, 16)

        client.share_model(description, weights)
        ask()
        stored_files = [path for path in (cluster.root / "data").rglob("*") if path.is_file()]
        assert {path.relative_to(cluster.root / "data").parts[0] for path in stored_files} == {*SERVERS}
        for path in stored_files:
            assert b"legible" not in path.read_bytes() and path.stat().st_mode & 0o077 == 0
        keys = {role: cluster.root / "keys" / f"{role}.key" for role in SERVERS}
        assert len({key.read_text() for key in keys.values()}) == 4
        assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys.values())
        cluster.down()
        good = keys["party1"].read_text()
        keys["party1"].write_text(keys["party0"].read_text())
        with pytest.raises(
            ClusterError, match=r"party1 stopped while starting[\s\S]*data/party1 are stored under another"
        ):
            cluster.up()
        keys["party1"].write_text(good)
        cluster.up()
        assert cluster.set_aside() == {}
        ask()


def test_configurations_get_a_key_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports())
    before = {
        role: (cluster.config_path(role).read_text(), (tmp_path / f"keys/{role}.key").read_text()) for role in SERVERS
    }
    text, line = before["party0"][0].rstrip().rsplit("\n", 1)
    assert line == f"storage_key: {tmp_path}/keys/party0.key"
    cluster.config_path("party0").write_text(f"{text}\n")  # of a version without keys
    cluster.config_path("party1").write_text(f"{text}\nstorage: plaintext\n".replace("party0", "party1", 1))
    cluster.configure()
    assert cluster.config_path("party0").read_text() == before["party0"][0]
    assert (tmp_path / "keys/party0.key").read_text() == before["party0"][1]
    assert "storage_key" not in cluster.config_path("party1").read_text()


# Leftovers ---------------------------------------------------------------------------------------


def aged(path: Path, seconds: float) -> None:
    for inner in (*path.rglob("*"), path):
        os.utime(inner, (time.time() - seconds,) * 2)


def test_leftovers_are_collected(tmp_path: Path) -> None:
    models = tmp_path / "models"
    old, young, whole, damaged, unknown, named = (models / name for name in (*(d * 32 for d in "01234"), "other"))
    for path in (old, young, whole, damaged, unknown, named):
        path.mkdir(parents=True)
        (path / "seed").write_bytes(b"")
        (path / f".{secrets.token_hex(8)}.new").write_bytes(b"half")
    (whole / "model.json").write_bytes(b"")
    (damaged / "model.json.damaged").write_bytes(b"")
    (unknown / "burnt").write_bytes(b"")
    for path in (old, whole, damaged, unknown, named):
        aged(path, 4000)
    aged(young, 3000)
    collect(tmp_path)
    assert {path.name for path in models.iterdir()} == {young.name, whole.name, damaged.name, unknown.name, named.name}
    assert {path.parent for path in models.rglob(".*.new")} == {young}
    collect(tmp_path / "absent")
    aged(young, -3600)  # the clock was set back since
    collect(tmp_path, age=None)
    assert {path.name for path in models.iterdir()} == {whole.name, damaged.name, unknown.name, named.name}
    assert len(list(models.rglob("seed"))) == 4


def test_a_full_disk_under_the_log_costs_lines_and_nothing_else() -> None:
    text = "import structlog\nfrom ditto.service.process import setup_logs\nsetup_logs('info', 'party0')\n"
    text += "for _ in range(200): structlog.get_logger().info('x' * 100)\nprint('goes on', flush=True)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", text], stdout=-1, stderr=full, text=True, timeout=60)
    assert done.stdout == "goes on\n"


def test_status_counts_what_was_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    Cluster(tmp_path).configure(ports=_free_ports())
    place = tmp_path / "data" / "party1" / "models" / ("0" * 32)
    place.mkdir(parents=True)
    (place / "model.json.damaged").write_bytes(b"")
    found = json.loads(CliRunner().invoke(app, ["cluster", "status", "--json"]).stdout)
    assert found["set_aside"] == {"party1": 1} and found["unconfirmed"] == {}
    assert "party1: 1 damaged" in CliRunner().invoke(app, ["cluster", "status"]).output

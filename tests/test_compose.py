"""docker-compose.yml and deploy/kubernetes: what can rot without a container engine. `tests/compose/` runs the former,
`test_kubernetes.py` renders the latter."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
import yaml
from cryptography import x509

from ditto.cli import app
from ditto.errors import ConfigError
from ditto.names import ROLES
from ditto.net.certs import init_certs, load_certificate
from ditto.net.config import ClientConfig, CoordinatorConfig, DealerConfig, PartyConfig, Tls, load_config
from ditto.net.emulation import networks
from ditto.net.tls import load_revocations
from ditto.net.transport import build_server
from parties.health import serving

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVERS: dict[str, Any] = {
    "dealer": DealerConfig,
    "party0": PartyConfig,
    "party1": PartyConfig,
    "coordinator": CoordinatorConfig,
}
MODULES = {
    "dealer": "parties.dealer",
    "party0": "parties.party",
    "party1": "parties.party",
    "coordinator": "parties.coordinator",
}


def exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def mounts(service: str) -> dict[str, tuple[str, str]]:
    """Target -> source and mode."""
    parts = [entry.split(":") for entry in SERVICES[service]["volumes"]]
    return {part[1]: (part[0], part[2] if len(part) > 2 else "rw") for part in parts}


# docker-compose.yml -------------------------------------------------------------------------------


def test_services_and_volumes() -> None:
    assert SERVICES.keys() == {*SERVERS, "certs", "client"}
    used = {source for name in SERVICES for source, _ in mounts(name).values() if "/" not in source}
    assert used == COMPOSE["volumes"].keys()
    assert COMPOSE["networks"]["default"]["internal"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert not service.keys() & {"privileged", "cap_add", "user", "pid", "ipc", "ports", "devices"}
    assert service.get("network_mode") in (None, "none")
    assert all("docker.sock" not in source for source, _ in mounts(name).values())


@pytest.mark.parametrize("name", SERVERS)
def test_a_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    module, path = service["command"]
    assert module == MODULES[name] and exists(module)
    monkeypatch.setenv("DITTO_NETWORK", "wan")
    config = load_config(ROOT / path, SERVERS[name])
    assert config.role == name
    assert config.listen.rsplit(":", 1)[1] == config.peers.of(name).rsplit(":", 1)[1]
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "parties.health", path]
    assert mounts(name) == {"/certs": (f"certs-{name}", "ro"), str(config.data_dir): (name, "rw")}
    files = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key", "crl": "crl.pem"}
    assert config.tls == Tls(**{key: f"/certs/{file}" for key, file in files.items()})
    assert config.storage == "encrypted" and config.storage_key == Path("/certs/storage.key")
    assert service["depends_on"]["certs"] == {"condition": "service_completed_successfully"}
    assert service["environment"]["OMP_NUM_THREADS"] == str(config.threads)
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVERS)
def test_an_example_configuration(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml", SERVERS[name])
    assert config.storage == "encrypted" and config.storage_key is not None
    assert config.data_dir not in config.storage_key.parents


def test_peers_are_services() -> None:
    for path in (ROOT / "configs" / "compose").glob("*.yaml"):
        peers = yaml.safe_load(path.read_text())["peers"]
        assert {role: address.split(":")[0] for role, address in peers.items()} == {role: role for role in SERVERS}


def test_each_waits_for_what_it_needs() -> None:
    healthy = {"condition": "service_healthy"}
    needed = SERVICES["coordinator"]["depends_on"]
    assert all(needed[name] == healthy for name in ("dealer", "party0", "party1"))
    assert SERVICES["client"]["depends_on"] == {"coordinator": healthy}


def test_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SERVICES["client"]
    assert client["profiles"] == ["client"] and client["entrypoint"] == ["python", "-m", "ditto"] and exists("ditto")
    monkeypatch.setenv("DITTO_NETWORK", "lan")
    path = Path(client["environment"]["DITTO_CONFIG"])
    config = load_config(ROOT / path.relative_to("/app"), ClientConfig)
    assert config.network is not None and config.network.name == "lan"
    assert config.tls.key == Path("/certs/client.key") and config.tls.crl == Path("/certs/crl.pem")
    assert mounts("client")["/certs"] == ("certs-client", "ro")
    assert mounts("client")[client["environment"]["DITTO_HOME"]] == ("client", "rw")


@pytest.mark.parametrize("name", ["dealer", "party0", "party1", "client"])
def test_the_network_is_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SERVICES[name]["environment"]["DITTO_NETWORK"] == "${DITTO_NETWORK:-loopback}"
    path, kind = ROOT / "configs" / "compose" / f"{name}.yaml", SERVERS.get(name, ClientConfig)
    for profile in networks():
        monkeypatch.setenv("DITTO_NETWORK", profile)
        network = load_config(path, kind).network
        assert network is not None and network.name == profile
    monkeypatch.setenv("DITTO_NETWORK", "lann")
    with pytest.raises(ConfigError, match=r"lann.*loopback"):
        load_config(path, kind)
    monkeypatch.delenv("DITTO_NETWORK")
    with pytest.raises(ConfigError, match=r"\$DITTO_NETWORK"):
        load_config(path, kind)


def test_certificates_go_to_their_roles_only(tmp_path: Path) -> None:
    service = SERVICES["certs"]
    assert service["entrypoint"][0] == "python" and service["network_mode"] == "none"
    assert mounts("certs") == {f"/roles/{name}": (f"certs-{name}", "rw") for name in ("authority", *ROLES)}
    for name in ("authority", *ROLES):
        (tmp_path / name).mkdir()
    environment = os.environ | {"CERTS": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*args: str) -> dict[Path, bytes]:
        subprocess.run([sys.executable, ROOT / service["entrypoint"][1], *args], check=True, env=environment, cwd=ROOT)
        return {file: file.read_bytes() for file in tmp_path.rglob("*.*")}

    first = run()
    keys = {tmp_path / role / "storage.key" for role in SERVERS}
    kept = {path: first.pop(path) for path in keys}
    assert len(set(kept.values())) == 4
    assert all(re.fullmatch(rb"[0-9a-f]{64}\n", key) for key in kept.values())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys)
    expected = {tmp_path / "authority" / name for name in ("ca.pem", "ca.key", "crl.pem")}
    for role in ROLES:  # one key of a pair in each volume, its own
        expected |= {tmp_path / role / file for file in ("ca.pem", "crl.pem", f"{role}.pem", f"{role}.key")}
    assert first.keys() == expected
    assert run() == first | kept
    (tmp_path / "dealer" / "dealer.key").unlink()
    second = run()  # one set, never half of two
    assert second.keys() == expected | keys and {path: second.pop(path) for path in keys} == kept
    assert not set(second.values()) & set(first.values())

    run("revoke", "client")
    third = run("renew", "client")
    changed = {path.relative_to(tmp_path) for path in third if third[path] != (second | kept)[path]}
    lists = {Path(name) / "crl.pem" for name in ("authority", *ROLES)}
    assert changed == lists | {Path("client/client.pem"), Path("client/client.key")}
    assert len({third[tmp_path / path] for path in lists}) == 1
    root = load_certificate(tmp_path / "authority" / "ca.pem")
    before = x509.load_pem_x509_certificate(second[tmp_path / "client" / "client.pem"])
    assert load_revocations(tmp_path / "party0" / "crl.pem", root).serials == {before.serial_number}


def test_the_image() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    users = [line[1] for line in words if line[0] == "USER"]
    assert users[-1] == "10001:10001"  # a number: Kubernetes checks runAsNonRoot by it
    assert [line for line in lines if line.startswith("ENTRYPOINT")] == ['ENTRYPOINT ["python", "-m"]']
    made = next(line for line in words if "install" in line and "-d" in line)
    assert {*mounts("certs"), "/data", "/certs"} <= set(made)  # volumes take their owner from these
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {source for line in words if line[0] == "COPY" and "--from=build" not in line for source in line[1:-1]}
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert re.fullmatch(r"torch==[\d.]+", torch)  # no local version: CPU and CUDA wheels both satisfy it


def test_health_is_asked_with_the_servers_own_certificate(tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    tls = {key: tmp_path / file for key, file in (("ca", "ca.pem"), ("cert", "dealer.pem"), ("key", "dealer.key"))}
    server, port = build_server("127.0.0.1:0", Tls(**tls), "dealer", {})
    path = tmp_path / "dealer.yaml"
    names = {key: file.name for key, file in tls.items()}
    path.write_text(yaml.safe_dump({"role": "dealer", "listen": f"0.0.0.0:{port}", "tls": names}))
    server.start()
    try:
        assert serving(path)
    finally:
        server.stop(None).wait()
    with pytest.raises(grpc.RpcError):
        serving(path)


def test_documented_commands_exist() -> None:
    root = typer.main.get_command(app)
    commands: Any = getattr(root, "commands")  # noqa: B009
    found = []
    for name in ("docs/operating.md", "docker-compose.yml", "tests/compose/run.sh"):
        text = (ROOT / name).read_text()
        found += re.findall(r"(?:docker compose run [^\n`]*?\bclient|\$ditto) +([a-z]\w*)(?: +([a-z]\w*))?", text)
    assert found
    for command, sub in found:
        assert command in commands
        nested = getattr(commands[command], "commands", None)
        assert nested is None or sub in nested


# deploy/kubernetes --------------------------------------------------------------------------------

BASE = ROOT / "deploy" / "kubernetes" / "base"
OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"
LABEL = {"app.kubernetes.io/name": "ditto"}
CALLERS = {  # docs/operating.md: who needs to reach whom
    "dealer": {"party0", "party1", "coordinator"},
    "party0": {"party1", "coordinator", "client"},
    "party1": {"coordinator", "client"},
    "coordinator": {"client"},
}


def objects(kustomization: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What the resources of a directory define, by kind and name."""
    found = {}
    for entry in yaml.safe_load((kustomization / "kustomization.yaml").read_text())["resources"]:
        path = kustomization / entry
        assert path.exists(), path
        if path.is_dir():
            found |= objects(path)
            continue
        document = yaml.safe_load(path.read_text())
        found[document["kind"], document["metadata"]["name"]] = document
    return found


def test_one_overlay_for_each_server() -> None:
    assert {path.name for path in OVERLAYS.iterdir()} == SERVERS.keys()
    used = {entry for entry in yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]}
    assert used == {path.name for path in BASE.iterdir()} - {"kustomization.yaml"}


def test_the_pod() -> None:
    found = objects(BASE)
    spec = found["Deployment", "server"]["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == LABEL
    pod = spec["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["python", "-m", "parties.health", container["args"][1]]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}
    assert {m["name"] for m in container["volumeMounts"] if m.get("readOnly")} == {
        "config", "certs", "revocations", "storage",
    }  # fmt: skip
    assert all("subPath" not in mount for mount in container["volumeMounts"])  # it would not follow what is applied
    assert ("PersistentVolumeClaim", volumes["data"]["persistentVolumeClaim"]["claimName"]) in found
    service = found["Service", "server"]["spec"]
    assert service["selector"] == LABEL
    (port,) = container["ports"]
    assert service["ports"] == [{"name": "grpc", "port": port["containerPort"], "targetPort": port["name"]}]
    deny = found["NetworkPolicy", "default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("role", SERVERS)
def test_an_overlay(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = OVERLAYS / role
    text = (path / "kustomization.yaml").read_text()
    kustomization = yaml.safe_load(text)
    found = objects(path)
    container = found["Deployment", "server"]["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    (generated,) = kustomization["configMapGenerator"]
    assert generated == {"name": "config", "files": ["config.yaml"]}
    config = load_config(path / "config.yaml", SERVERS[role])
    port = container["ports"][0]["containerPort"]
    assert config.role == role and config.listen == f"0.0.0.0:{port}"
    assert {config.peers.of(peer) for peer in SERVERS} == {f"{peer}.example:{port}" for peer in SERVERS}
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(config.data_dir) in places and container["args"][1] == "/config/config.yaml"
    assert config.storage == "encrypted" and config.storage_key is not None
    assert config.tls.crl is not None
    for file in (config.tls.ca, config.tls.cert, config.tls.key, config.tls.crl, config.storage_key):
        assert str(file.parent) in places and f"--from-file={file.name}" in text
    patches = [change for patch in kustomization.get("patches", []) for change in yaml.safe_load(patch["patch"])]
    arguments = [change["value"] for change in patches if change["path"].endswith("/args/0")]
    assert [*container["args"][:1], *arguments][-1] == MODULES[role]
    assert [image["name"] for image in kustomization["images"]] == [container["image"]]
    assert kustomization["namespace"] == f"ditto-{role}" and f"create namespace ditto-{role}\n" in text


def ranges(role: str, direction: str, side: str) -> set[str]:
    policy = objects(OVERLAYS / role)["NetworkPolicy", "peers"]["spec"]
    return {peer["ipBlock"]["cidr"] for rule in policy[direction] for peer in rule[side] if "ipBlock" in peer}


def test_network_policies_let_in_the_right_peers_only() -> None:
    names = {"192.0.2.0/28": "party0", "192.0.2.16/28": "party1", "192.0.2.32/28": "dealer"}
    names |= {"192.0.2.48/28": "coordinator", "203.0.113.0/24": "client"}
    for role in SERVERS:
        policy = objects(OVERLAYS / role)["NetworkPolicy", "peers"]["spec"]
        assert policy["podSelector"]["matchLabels"] == LABEL and policy["policyTypes"] == ["Ingress", "Egress"]
        assert {names[cidr] for cidr in ranges(role, "ingress", "from")} == CALLERS[role]
        called = {other for other, callers in CALLERS.items() if role in callers}
        assert {names[cidr] for cidr in ranges(role, "egress", "to")} == called
        assert [rule["ports"] for rule in policy["ingress"]] == [[{"protocol": "TCP", "port": "grpc"}]]
        ports = [{entry["port"] for entry in rule["ports"]} for rule in policy["egress"]]
        assert ports == ([{50051}, {53}] if called else [])

"""deploy/kubernetes as `kubectl kustomize` renders it: each overlay alone, and with every component."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, ServerConfig, load_config

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not installed")
KUBERNETES = Path(__file__).parent.parent / "deploy" / "kubernetes"
WORKERS = "workers"  # of a party; the other components are for any overlay
COMPONENTS = sorted({path.name for path in (KUBERNETES / "components").iterdir()} - {WORKERS})
KINDS: dict[str, Any] = {
    "dealer": DealerConfig, "party0": PartyConfig, "party1": PartyConfig, "coordinator": CoordinatorConfig,
}  # fmt: skip
LABEL = {"app.kubernetes.io/name": "ditto"}
Objects = dict[tuple[str, str], dict[str, Any]]


def rendered(role: str, components: list[str], place: Path) -> Objects:
    """What would be applied, by kind and name."""
    place = place.resolve()

    def there(*parts: str) -> str:  # kustomize takes no absolute path
        return os.path.relpath(KUBERNETES.joinpath(*parts), place)

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": f"ditto-{role}",
        "resources": [there("overlays", role)], "components": [there("components", name) for name in components],
    }  # fmt: skip
    (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(["kubectl", "kustomize", str(place)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "PRIVATE KEY" not in done.stdout
    found: Objects = {}
    for document in yaml.safe_load_all(done.stdout):
        name = "config" if document["kind"] == "ConfigMap" else document["metadata"]["name"]
        assert (document["kind"], name) not in found
        found[document["kind"], name] = document
    return found


def container(objects: Objects) -> dict[str, Any]:
    (only,) = objects["Deployment", "server"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def configured(role: str, objects: Objects, place: Path, patch: pytest.MonkeyPatch) -> ServerConfig:
    """As the server reads it in its pod."""
    for variable in container(objects)["env"]:
        patch.setenv(variable["name"], variable["value"])
    path = place / "config.yaml"
    path.write_text(objects["ConfigMap", "config"]["data"]["config.yaml"])
    found: ServerConfig = load_config(path, KINDS[role])
    return found


def check(role: str, objects: Objects) -> None:
    """What holds of every overlay, whatever is added to it."""
    assert not any(kind in ("Secret", "Role", "ClusterRole", "RoleBinding", "ServiceAccount") for kind, _ in objects)
    for (kind, name), document in objects.items():
        assert document["metadata"].get("namespace", name) == f"ditto-{role}", (kind, name)
    deployment = objects["Deployment", "server"]["spec"]
    template = deployment["template"]
    assert deployment["replicas"] == 1 and deployment["strategy"] == {"type": "Recreate"}
    assert deployment["selector"]["matchLabels"] == LABEL  # cannot be changed once it is applied
    assert template["metadata"]["labels"] == LABEL | {"app.kubernetes.io/component": role}
    pod, server = template["spec"], container(objects)
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    module = "parties.party" if role.startswith("party") else f"parties.{role}"
    assert server["args"] == [module, "/config/config.yaml"]
    rights = server["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]} and not rights.get("privileged")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["exec"]["command"] == ["python", "-m", "parties.health", server["args"][1]]
    assert server["resources"]["requests"].keys() == {"cpu", "memory"} and server["resources"]["limits"]["memory"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap", "config"]["metadata"]["name"]
    assert volumes["revocations"]["configMap"]["name"] == "revocations"  # made beforehand
    assert {volumes[name]["secret"]["secretName"] for name in ("certs", "storage")} == {"certs", "storage"}
    assert all("hostPath" not in volume for volume in volumes.values())
    namespace = objects["Namespace", f"ditto-{role}"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    # what the load balancer leads to, and the policies: all are for this pod, and the first forbids what none allows
    assert [port["targetPort"] for port in objects["Service", "server"]["spec"]["ports"]] == ["grpc"]
    policies = {name: document["spec"] for (kind, name), document in objects.items() if kind == "NetworkPolicy"}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {port["name"] for port in server["ports"]}
    for spec in policies.values():
        assert spec["podSelector"] == {"matchLabels": LABEL}
        for rule in spec.get("ingress", []):
            assert rule["from"] and {port["port"] for port in rule["ports"]} <= ports
        assert all(rule["to"] and rule["ports"] for rule in spec.get("egress", []))


@pytest.mark.parametrize("role", KINDS)
def test_an_overlay_alone(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered(role, [], tmp_path)
    check(role, objects)
    assert objects.keys() == {
        ("Namespace", f"ditto-{role}"), ("ConfigMap", "config"), ("Service", "server"),
        ("PersistentVolumeClaim", "data"), ("Deployment", "server"), ("NetworkPolicy", "default-deny"),
        ("NetworkPolicy", "peers"),
    }  # fmt: skip
    config = configured(role, objects, tmp_path, monkeypatch)
    assert config.role == role and config.metrics is None and config.telemetry is None
    assert [port["name"] for port in container(objects)["ports"]] == ["grpc"]


@pytest.mark.parametrize("role", KINDS)
def test_with_every_component(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered(role, COMPONENTS, tmp_path)
    check(role, objects)
    config = configured(role, objects, tmp_path, monkeypatch)
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    assert config.metrics == f"0.0.0.0:{ports['metrics']}" and ports["metrics"] != ports["grpc"]
    annotations = objects["Deployment", "server"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(ports["metrics"])}
    (scraped,) = objects["NetworkPolicy", "metrics"]["spec"]["ingress"]
    assert [port["port"] for port in scraped["ports"]] == ["metrics"]
    assert all("namespaceSelector" in peer and "podSelector" in peer for peer in scraped["from"])
    monitor = objects["PodMonitor", "server"]["spec"]
    assert monitor["selector"]["matchLabels"] == LABEL
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in ports and {"targetLabel": "job", "replacement": "ditto"} in endpoint["relabelings"]
    # the collector's name is in the namespace, and its port the one, that the policy opens
    assert config.telemetry is not None
    collector = urlsplit(config.telemetry.endpoint)
    opened, _ = objects["NetworkPolicy", "telemetry"]["spec"]["egress"]
    (peer,) = opened["to"]
    space = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert collector.hostname is not None and collector.hostname.split(".")[1] == space
    assert [port["port"] for port in opened["ports"]] == [collector.port]


def listed(config: str, count: int) -> str:
    """The configuration with the addresses of workers, as the component says that it lists them."""
    for role in ("party0", "party1"):
        names = [f"{role}.example:50051", *(f"{role}-{worker}.example:50051" for worker in range(1, count))]
        line = f"{role}: [{', '.join(names)}]"
        assert line in (KUBERNETES / "components" / WORKERS / "kustomization.yaml").read_text()
        config = config.replace(f"{role}: {role}.example:50051", line)
    return config


@pytest.mark.parametrize("role", ["party0", "party1"])
def test_several_workers(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds of the Deployment holds of the set that takes its place, whichever other components there are; each
    pod has a claim, a place and a way in of its own, and the keeper those that the party had."""
    alone = rendered(role, COMPONENTS, tmp_path)
    objects = rendered(role, [WORKERS, *COMPONENTS], tmp_path)
    made, changed = objects.pop(("StatefulSet", "server")), alone.pop(("Deployment", "server"))
    assert ("PersistentVolumeClaim", "data") not in objects
    assert made["spec"]["serviceName"] == "workers" and made["spec"]["selector"] == changed["spec"]["selector"]
    assert objects["Service", "workers"]["spec"]["clusterIP"] == "None"
    (claim,) = made["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == alone["PersistentVolumeClaim", "data"]["spec"]
    pod, before = (document["spec"]["template"]["spec"] for document in (made, changed))
    assert [volume for volume in before["volumes"] if volume["name"] != "data"] == pod["volumes"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} >= {claim["metadata"]["name"]}
    now, then = ({v["name"]: v for v in spec["containers"][0].pop("env")} for spec in (pod, before))
    index = {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    assert now.pop("DITTO_WORKER") == {"name": "DITTO_WORKER", "valueFrom": index}
    keeper = now.pop("DITTO_KEEPER")["value"]
    assert now == {name: v for name, v in then.items() if name not in ("DITTO_WORKER", "DITTO_KEEPER")}
    assert {k: v for k, v in pod.items() if k != "volumes"} == {k: v for k, v in before.items() if k != "volumes"}
    ways = [d["spec"] for (kind, _), d in objects.items() if kind == "Service" and d["spec"].get("type")]
    chosen = [way["selector"]["statefulset.kubernetes.io/pod-name"] for way in ways]
    assert sorted(chosen) == [f"server-{worker}" for worker in range(len(ways))]
    assert keeper == f"server-0.{made['spec']['serviceName']}:50051"
    # as pod 2 reads it
    for name, variable in now.items():
        monkeypatch.setenv(name, variable["value"])
    monkeypatch.setenv("DITTO_WORKER", "2")
    monkeypatch.setenv("DITTO_KEEPER", keeper)
    path = tmp_path / "config.yaml"
    path.write_text(listed(objects["ConfigMap", "config"]["data"]["config.yaml"], len(ways)))
    config = load_config(path, PartyConfig)
    assert (config.worker, config.keeper_address) == (2, keeper)
    assert config.peers.of(role, 2) == f"{role}-2.example:50051"
    coordinator = tmp_path / "coordinator.yaml"
    coordinator.write_text(listed((KUBERNETES / "overlays/coordinator/config.yaml").read_text(), len(ways)))
    monkeypatch.setenv("DITTO_METRICS", "")
    monkeypatch.setenv("DITTO_TELEMETRY", "")
    assert len(load_config(coordinator, CoordinatorConfig).peers.workers(role)) == len(ways)
    # the pods reach each other, by the policy that is added
    policy = objects["NetworkPolicy", "workers"]["spec"]
    own = [{"podSelector": {"matchLabels": LABEL}}]
    assert policy["ingress"][0]["from"] == policy["egress"][0]["to"] == own == [{"podSelector": policy["podSelector"]}]


def test_the_image_has_what_telemetry_needs() -> None:
    text = (KUBERNETES.parent.parent / "Dockerfile").read_text()
    assert "['optional-dependencies']['telemetry']" in text

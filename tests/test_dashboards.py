"""deploy/grafana, deploy/prometheus and the table of docs/operating.md speak of metrics and labels that servers export.

Neither Grafana nor Prometheus runs here: what is checked is names, labels, and the layout of the panels.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ditto.net.certs import init_certs
from ditto.net.config import Tls
from ditto.net.metrics import CoordinatorMetrics, DealerMetrics, Metrics, PartyMetrics
from ditto.net.process_metrics import OwnProcess, memory_limit

ROOT = Path(__file__).parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "ditto.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "ditto.rules.yml").read_text())
SCRAPE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
TARGET = {"instance", "job"}  # what Prometheus itself knows of each series
Series = dict[str, set[str]]  # labels by the name of a sample


def exposed(*metrics: Metrics, own: OwnProcess | None = None) -> Series:
    """What a scrape of these shows: names of samples with all labels that they have."""
    found: Series = {}
    for m in metrics:
        m.jobs.labels("done").inc()
        if isinstance(m, CoordinatorMetrics | PartyMetrics):
            m.seconds.labels("online").observe(0.1)
        if isinstance(m, PartyMetrics):
            m.dealt(1, 1), m.link.sent(1, 1)
        if isinstance(m, DealerMetrics):
            m.dealt(0, 1, 1), m.waiting.labels("party0").set(0)
        if own is not None:
            m.registry.register(own)
        for family in text_string_to_metric_families(generate_latest(m.registry).decode()):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnProcess:
    certs = tmp_path_factory.mktemp("certs")
    init_certs(certs, [])
    return OwnProcess(Tls(ca=certs / "ca.pem", cert=certs / "dealer.pem", key=certs / "dealer.key"))


@pytest.fixture(scope="module")
def series(own: OwnProcess) -> Series:
    return exposed(CoordinatorMetrics(), PartyMetrics(), DealerMetrics(), own=own)


# PromQL -----------------------------------------------------------------------------------------

_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS = {"and", "or", "unless", "bool", "offset"}


def names_and_labels(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """Labels by metric in its selectors, and the labels that results are grouped by."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\[[^\]]*\]", "", text)
    grouped = {label.strip() for _, labels in _GROUPING.findall(text) for label in labels.split(",") if label.strip()}
    text = re.sub(r"\b\d[\w.]*", " ", _GROUPING.sub(" ", text))
    metrics: dict[str, set[str]] = {}
    for name, selector in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", text):
        metrics.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
    text = re.sub(r"[\w:]+\s*\{[^}]*\}", " ", text)
    for name, call in re.findall(r"([a-zA-Z_:][\w:]*)(\s*\()?", text):
        if not call and name not in _WORDS:
            metrics.setdefault(name, set())
    return metrics, grouped


def check(expression: str, series: Series) -> set[str]:
    """Are an expression's metrics exported, with all labels that it asks for? Returns the labels of what it gives."""
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    metrics, grouped = names_and_labels(expression)
    assert metrics, expression
    known: set[str] = set(TARGET)
    for name, labels in metrics.items():
        if name == "up":  # Prometheus makes it
            assert labels <= TARGET
            continue
        assert name in series, f"{name} in {expression}"
        assert labels <= series[name] | TARGET, f"{name}: {labels} in {expression}"
        known |= series[name]
    assert grouped <= known, f"{grouped} in {expression}"
    return grouped if re.search(r"\b(sum|max|min|avg)\b", expression) else known


def test_the_reader_of_expressions() -> None:
    found = names_and_labels(
        'sum by (le, a) (rate(m_bucket{x="1{", y!~"$v|z"}[$__rate_interval])) / n > 2 * 86400 and on (i) up'
    )
    assert found == ({"m_bucket": {"x", "y"}, "n": set(), "up": set()}, {"le", "a", "i"})


@pytest.mark.parametrize(
    "wrong",
    [
        "ditto_jobs", "rate(ditto_job_total[5m])", 'ditto_jobs_total{result="done"}', "up) > 0",
        "sum by (model) (ditto_jobs_total)",
    ],
)  # fmt: skip
def test_what_nobody_exports_is_found(wrong: str, series: Series) -> None:
    with pytest.raises(AssertionError):
        check(wrong, series)


# Grafana ----------------------------------------------------------------------------------------


def test_panels_ask_for_what_servers_export(series: Series) -> None:
    asked: set[str] = set()
    for panel in DASHBOARD["panels"]:
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references) and (references or panel["type"] == "row")
        for target in panel.get("targets", []):
            left = check(target["expr"], series)
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left | {"instance"}, target
            asked |= names_and_labels(target["expr"])[0].keys()
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert shown - {"up"} == {re.sub(r"_(bucket|sum|count)$", "", name) for name in series}


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and DASHBOARD["title"] and DASHBOARD["uid"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] >= 0 and place["w"] > 0 and place["h"] > 0 and place["x"] + place["w"] <= 24
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "(\$\{\w+\})"', text)) == {"${datasource}"}  # no data source of one installation
    used = set(re.findall(r"\$\{?([a-z]\w*)\}?", text))
    assert used == variables.keys()


def test_variables_ask_for_what_servers_export(series: Series) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert found and found[1] in series and found[2] in series[found[1]] | TARGET


# Prometheus -------------------------------------------------------------------------------------


def test_alerts(series: Series) -> None:
    (group,) = RULES["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names)
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m")) and rule["labels"]["severity"] in (
            "warning",
            "critical",
        )
        left = check(rule["expr"], series)
        assert rule["annotations"].keys() == {"summary", "description"}
        said = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert said <= left | {"instance"}, rule["alert"]


def test_the_scrape_configuration() -> None:
    (scrape,) = SCRAPE["scrape_configs"]
    assert all((ROOT / "deploy" / "prometheus" / name).exists() for name in SCRAPE["rule_files"])
    asked = re.findall(r'job="(\w+)"', json.dumps(RULES).replace("\\", "") + json.dumps(DASHBOARD).replace("\\", ""))
    assert set(asked) == {scrape["job_name"]}


# The table --------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[set[str], str]]:
    """Labels and whose it is, by metric."""
    text = (ROOT / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| `(ditto_\w+)`[^|]*\| ([^|]*)\| [^|]+\| ([^|]*) \|$", text, re.MULTILINE)
    return {name: (set(re.findall(r"`(\w+)`", labels)), whose) for name, labels, whose in rows}


def test_the_table_has_what_servers_export(own: OwnProcess) -> None:
    servers: dict[str, Metrics] = {
        "coordinator": CoordinatorMetrics(), "parties": PartyMetrics(), "dealer": DealerMetrics(),
    }  # fmt: skip
    found: dict[str, tuple[set[str], set[str]]] = {}
    for whose, metrics in servers.items():
        for sample, labels in exposed(metrics, own=own).items():
            name = re.sub(r"_(bucket|sum|count)$", "", sample)
            entry = found.setdefault(name, (set(), set()))
            entry[0].update(labels - {"le"}), entry[1].add(whose)
    table = {
        name: (labels, set(servers) if whose == "all" else {*whose.split(", ")})
        for name, (labels, whose) in documented().items()
    }
    assert table == found


def test_no_label_takes_a_name_of_a_model_a_job_or_a_client(series: Series) -> None:
    labels = set().union(*series.values())
    assert labels == {"outcome", "phase", "le", "direction", "part", "party", "certificate"}


# The process ------------------------------------------------------------------------------------


def test_the_limit_is_the_least(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/elsewhere\n0::/pod/server\n")
    (tmp_path / "pod" / "server").mkdir(parents=True)
    machine = memory_limit(tmp_path / "none", tmp_path)
    (tmp_path / "pod" / "server" / "memory.max").write_text("max\n")
    assert memory_limit(own, tmp_path) == machine > 1 << 20
    (tmp_path / "pod" / "memory.max").write_text("1048576\n")
    assert memory_limit(own, tmp_path) == 1 << 20


def test_a_certificate_that_is_being_renewed_is_left_out(tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    tls = Tls(ca=tmp_path / "ca.pem", cert=tmp_path / "dealer.pem", key=tmp_path / "dealer.key")

    def shown() -> dict[str, float]:
        families = {family.name: family for family in OwnProcess(tls).collect()}
        samples = families["ditto_certificate_expiry_timestamp_seconds"].samples
        return {sample.labels["certificate"]: sample.value for sample in samples}

    assert shown().keys() == {"own", "authority"} and min(shown().values()) > 1.7e9
    tls.cert.write_bytes(b"half of one")
    assert shown().keys() == {"authority"}

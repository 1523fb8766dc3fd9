"""Metrics, log lines and status of a real cluster agree with the report of the job that caused them."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from collector import Collector, Received, collecting
from engine import beside
from prometheus_client.parser import text_string_to_metric_families
from tiny import small_shapes
from typer.testing import CliRunner
from world import issue

from ditto.cli import app
from ditto.client.client import Client
from ditto.client.generation import generate
from ditto.client.local_cluster import Cluster, _free_ports
from ditto.client.sampling import Sampler
from ditto.engine.program import Program
from ditto.errors import ClusterError, ConfigError
from ditto.models import Plan, encode_inputs, random_batch, random_model
from ditto.models.tokenizer import Prompts
from ditto.names import PARTIES, SERVERS
from ditto.net.config import DealerConfig, Telemetry, load_config
from ditto.net.metrics import Metrics, serve
from ditto.net.tracing import Context, Span, Tracing
from ditto.service.job_run import Account
from ditto.service.storage import Storage
from ditto.service.stored import Owner

SEQ = 16
ROUNDS, BYTES = beside()  # of a job, beside its program
Samples = dict[tuple[str, ...], float]  # (name, label values in the order of their names)


def amend(cluster: Cluster, role: str, **changes: Any) -> None:
    path = cluster.config_path(role)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("home"))
    cluster.configure(ports=_free_ports())
    for role, port in zip(SERVERS, _free_ports().values(), strict=True):
        amend(cluster, role, metrics=f"127.0.0.1:{port}", log_level="debug", telemetry=collector.endpoint)
    try:
        cluster.up()
        description, weights, _ = random_model("bert-tiny", 1, SEQ)
        with Client(cluster.client_config()) as client:
            client.share_model(description.model_copy(update={"name": "tiny"}), weights)
        yield cluster
    finally:
        cluster.down()


def text(cluster: Cluster, role: str) -> str:
    address = yaml.safe_load(cluster.config_path(role).read_text())["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def scrape(cluster: Cluster, role: str) -> Samples:
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text(cluster, role))
        for sample in family.samples
    }


def infer(client: Client, on_event: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    description = client.get_model("tiny")

    def inputs(program: Program) -> dict[str, Any]:
        return encode_inputs(description, program, random_batch(1, SEQ))

    return client.infer("tiny", inputs, 1, SEQ, on_event).report


def wait_for(cluster: Cluster, role: str, key: tuple[str, ...], value: float) -> Samples:
    """What a server counts after the client has its answer may come a moment later."""
    deadline = time.monotonic() + 10
    while (samples := scrape(cluster, role)).get(key) != value:
        assert time.monotonic() < deadline, (role, key, samples.get(key))
        time.sleep(0.05)
    return samples


def test_metrics_equal_the_report(cluster: Cluster) -> None:
    before = {role: scrape(cluster, role) for role in SERVERS}
    with Client(cluster.client_config()) as client:
        report = infer(client)
    done = ("ditto_jobs_total", "done")
    after = {role: wait_for(cluster, role, done, before[role].get(done, 0) + 1) for role in SERVERS}

    def rise(role: str, *key: str) -> float:
        return after[role].get(key, 0) - before[role].get(key, 0)

    for phase in ("offline", "online"):
        assert rise("coordinator", "ditto_job_seconds_count", phase) == 1
        assert rise("coordinator", "ditto_job_seconds_sum", phase) == pytest.approx(report[phase]["seconds"])
    for party, role in enumerate(PARTIES):
        traffic, peer = report["traffic"][role], report["traffic"][PARTIES[1 - party]]
        assert rise(role, "ditto_rounds_total") == traffic["rounds"] == report["online"]["rounds"] + ROUNDS
        assert traffic["sent"]["payload"] == report["online"]["bytes_sent"][party] + BYTES
        assert traffic["from_dealer"]["payload"] == report["offline"]["bytes_to_party"][party]
        assert traffic["received"] == peer["sent"] and traffic["sent"]["framing"] > 0
        for part in ("payload", "framing"):
            assert rise(role, "ditto_peer_bytes_total", "out", part) == traffic["sent"][part]
            assert rise(role, "ditto_peer_bytes_total", "in", part) == traffic["received"][part]
            assert rise(role, "ditto_dealer_bytes_total", part) == traffic["from_dealer"][part]
            assert rise("dealer", "ditto_dealt_bytes_total", part, role) == traffic["from_dealer"][part]
        for phase in ("offline", "online"):
            assert rise(role, "ditto_layer_seconds_count", phase) == len(report["layers"])
        assert after[role]["ditto_peer_link_up",] == 1
        assert after["dealer"]["ditto_waiting_bytes", role] == 0
    assert after["coordinator"]["ditto_queue_length",] == 0
    assert all(samples["ditto_models",] == 1 for samples in after.values())
    for samples in after.values():
        assert 0 < samples["ditto_memory_bytes",] <= samples["ditto_memory_limit_bytes",]
        assert samples["ditto_certificate_expiry_timestamp_seconds", "own"] > time.time()
    assert not any(report["job"][:8] in text(cluster, role) for role in SERVERS)


def test_an_abandoned_job_counts_as_cancelled(cluster: Cluster, collector: Collector) -> None:
    class Stop(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "layer":
            raise Stop

    with Client(cluster.client_config()) as client:
        before = client.status()["throughput"]["cancelled"]
        with pytest.raises(Stop):
            infer(client, stop)
        wait_for(cluster, "coordinator", ("ditto_jobs_total", "cancelled"), 1)
        wait_for(cluster, "party0", ("ditto_jobs_total", "aborted"), 1)
        assert client.status()["throughput"]["cancelled"] == before + 1
    ended = {("coordinator", "CANCELLED"), ("party0", "ABORTED"), ("party1", "ABORTED")}
    collector.until(lambda spans: ended <= {(span.service, span.error) for span in spans if span.name == "job"})


def test_status_follows_a_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[dict[str, Any]] = []
    with Client(cluster.client_config()) as client, Client(cluster.client_config()) as other:
        start = Client._start

        def look(*args: Any) -> None:  # the job waits for its inputs meanwhile, however short it is
            during.append(other.status())
            start(*args)

        monkeypatch.setattr(Client, "_start", look)
        report = infer(client)
    job = report["job"][:8]
    assert during[0]["queue"] == {"running": [job], "waiting": 0, "aside": 0}
    dealer = during[0]["dealer"]
    assert dealer["models"] == ["tiny"]
    assert dealer["job"] in (job, None)  # a job this small may be dealt by then
    assert all(set(stock) == {"ready_bytes", "sent_bytes"} for stock in dealer["parties"].values())
    monkeypatch.setenv("DITTO_HOME", str(cluster.root))
    result = CliRunner().invoke(app, ["cluster", "status", "--json"])
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status["serving"] and status["queue"] == {"running": [], "waiting": 0, "aside": 0}
    assert status["dealer"]["models"] == ["tiny"] and status["dealer"]["parties"] == {}
    throughput = status["throughput"]
    assert throughput["done"] == throughput["recent"] >= 1 and throughput["mean_online_seconds"] > 0
    shown = CliRunner().invoke(app, ["cluster", "status"])
    assert shown.exit_code == 0 and "models tiny" in shown.stdout and "s online" in shown.stdout


def secrets_of(cluster: Cluster) -> set[str]:
    """Seeds on disk, opened with the servers' keys, and these keys: as hexadecimal digits."""
    data = cluster.root / "data"
    keys = {role: (cluster.root / "keys" / f"{role}.key").read_text().strip() for role in SERVERS}

    def opened(role: str, share_id: str, path: Path) -> bytes:
        storage = Storage(bytes.fromhex(keys[role]))
        return storage.unseal(path.read_bytes(), Owner(role, share_id).context(path))

    seeds = {opened(p.parts[-4], p.parent.name, p).hex() for p in data.glob("*/models/*/mask_seed")}
    entries = (opened("dealer", p.stem, p) for p in (data / "dealer" / "models").glob("*.json"))
    masters = {json.loads(entry)["master"] for entry in entries}
    assert len(seeds) == 2 and len(masters) == 1
    return seeds | masters | set(keys.values())


def log_with_end(cluster: Cluster, role: str, job: str) -> str:
    deadline = time.monotonic() + 10
    while True:
        raw = (cluster.logs / f"{role}.log").read_text()
        if any(job in line and '"job ended"' in line for line in raw.splitlines()):
            return raw
        assert time.monotonic() < deadline, (role, job)
        time.sleep(0.05)


def test_log_lines_carry_role_job_and_layer(cluster: Cluster) -> None:
    with Client(cluster.client_config()) as client:
        report = infer(client)
    job = report["job"][:8]
    seeds = secrets_of(cluster)
    for role in SERVERS:
        raw = log_with_end(cluster, role, job)
        assert report["job"] not in raw and not any(seed[:8] in raw for seed in seeds)
        lines = [json.loads(line) for line in raw.splitlines() if line.startswith("{")]
        assert all(line["role"] == role for line in lines)
        mine = [line for line in lines if line.get("job") == job]
        assert [line["event"] for line in mine if line["event"].startswith("job")] == ["job started", "job ended"]
        assert mine[-1]["outcome"] == "done"
        if role in PARTIES:
            traffic, party = report["traffic"][role], PARTIES.index(role)
            sent = report["online"]["bytes_sent"][party] + BYTES
            assert mine[-1]["payload_sent"] == traffic["sent"]["payload"] == sent
            assert mine[-1]["rounds"] == report["online"]["rounds"] + ROUNDS
            steps = [(line["layer"], line["phase"]) for line in mine if line["event"] == "layer done"]
            count = len(report["layers"])  # each phase in order, each layer prepared before it runs
            for phase in ("offline", "online"):
                assert [i for i, ended in steps if ended == phase] == list(range(count))
            assert all(steps.index((i, "offline")) < steps.index((i, "online")) for i in range(count))


# Traces -------------------------------------------------------------------------------------------


def traced(cluster: Cluster, collector: Collector) -> tuple[dict[str, Any], list[Received]]:
    """The report of a job whose client is traced, too, and all spans of its trace."""
    config = cluster.client_config().model_copy(update={"telemetry": Telemetry(endpoint=collector.endpoint)})
    with Client(config) as client:
        report = infer(client)
    ends = {("client", "ask"), ("coordinator", "job"), ("party0", "job"), ("party1", "job"), ("dealer", "deal")}

    def mine(spans: list[Received]) -> list[Received]:
        traces = {span.trace for span in spans if span.attributes.get("ditto.job") == report["job"][:8]}
        return [span for span in spans if span.trace in traces]

    def whole(spans: list[Received]) -> bool:
        found = [(span.service, span.name) for span in mine(spans)]
        return ends <= {*found} and found.count(("dealer", "stream")) == 2

    return report, mine(collector.until(whole))


def test_a_job_is_one_trace(cluster: Cluster, collector: Collector) -> None:
    """Parents, times and counts; and that all that stands in spans is what every server knows of a job anyway."""
    report, spans = traced(cluster, collector)
    assert len({span.trace for span in spans}) == 1 and len({span.span for span in spans}) == len(spans)
    by_id = {span.span: span for span in spans}

    def of(service: str, name: str) -> Received:
        (found,) = (span for span in spans if (span.service, span.name) == (service, name))
        return found

    def parent(span: Received) -> Received:
        return by_id[span.parent]

    root, job = of("client", "ask"), of("coordinator", "job")
    assert root.parent == "" and parent(job) == root and job.within(root)
    jobs = [of(role, "job") for role in PARTIES]
    assert all(parent(mine) == job and mine.within(root) for mine in jobs)
    assert parent(of("dealer", "deal")) in jobs
    streams = [span for span in spans if span.name == "stream"]
    assert sorted(parent(span).service for span in streams) == list(PARTIES)
    assert all(span.within(parent(span)) for span in streams)
    names = {(span.service, span.name) for span in spans}
    assert names >= {("client", name) for name in ("encode", "send inputs", "reveal")}
    assert names >= {("coordinator", name) for name in ("queue", "open", "wait for inputs")}
    assert names >= {(role, name) for role in PARTIES for name in ("wait for dealer", "input", "output")}
    # layers, with the times of the report
    for layer in report["layers"]:
        for phase in ("offline", "online"):
            step = of("coordinator", f"{phase} {layer['name']}")
            sides = [of(role, step.name) for role in PARTIES]
            assert parent(step) == job and step.within(job)
            assert all(parent(side) == step and side.within(step) for side in sides)
            assert max(side.seconds for side in sides) == pytest.approx(layer[phase]["seconds"], abs=2e-9)
            if phase == "online":
                assert {side.attributes["ditto.rounds"] for side in sides} == {layer["online"]["rounds"]}
                assert [side.attributes["ditto.bytes_sent"] for side in sides] == layer["online"]["bytes_sent"]
            else:
                dealt = [side.attributes["ditto.bytes_from_dealer"] for side in sides]
                assert dealt == layer["offline"]["bytes_to_party"]
    assert job.attributes["ditto.rounds"] == report["online"]["rounds"] + ROUNDS
    assert not any(span.error for span in spans)
    # no content
    counted = {"layer", "stage", "rounds", "waiting_seconds", "batch", "padded_length", "tokens"}
    words: dict[str, set[str]] = {
        "job": {report["job"][:8]}, "model": {"tiny"}, "preset": {"ditto"}, "outcome": {"done"},
        "phase": {"offline", "online"},
    }  # fmt: skip
    for span in spans:
        for key, value in span.attributes.items():
            name = key.removeprefix("ditto.")
            if isinstance(value, str):
                assert value in words[name]
            else:
                assert name in counted or name.startswith("bytes_")
    raw = b"".join(collector.bodies)
    assert not any(secret.encode() in raw for secret in (*secrets_of(cluster), report["job"], report["owner"]))


class _Said(Span):
    def __init__(self, header: str) -> None:
        super().__init__()
        self._header = header

    @property
    def carried(self) -> dict[str, Any]:
        return {"metadata": (("traceparent", self._header),)}


class Says(Tracing):
    """A client that names whatever it likes as its trace."""

    def __init__(self, header: str) -> None:
        self._header = header

    def start(self, name: str, parent: Context | None = None, **attributes: Any) -> Span:
        return _Said(self._header)


def test_what_a_client_names_as_its_trace(cluster: Cluster, collector: Collector) -> None:
    """Its own goes on; what is none, or was another client's, does not count, and the job runs."""
    _, spans = traced(cluster, collector)
    (root,) = (span for span in spans if span.name == "ask")
    mallory = cluster.client_config().model_copy(update={"tls": issue(cluster, "mallory")})
    with Client(cluster.client_config()) as client:
        client.grant_model("tiny", "mallory")
    fresh = "5" * 32
    named: dict[str, str | None] = {
        f"00-{root.trace}-{root.span}-01": None,  # the other client's
        f"00-{fresh}-{'1' * 16}-00": fresh,
        f"00-{'0' * 32}-{'0' * 16}-01": None,
        "ff" * 2000: None,
    }
    jobs = {}
    for header in named:
        with Client(mallory) as client:
            client._tracing = Says(header)
            jobs[header] = infer(client)["job"][:8]

    def servers(spans: list[Received], job: str) -> list[Received]:
        return [s for s in spans if s.attributes.get("ditto.job") == job and s.name == "job"]

    spans = collector.until(lambda spans: all(len(servers(spans, job)) == 3 for job in jobs.values()))
    for header, trace in named.items():
        (found,) = {span.trace for span in servers(spans, jobs[header])}
        assert found == trace if trace else found not in (root.trace, fresh, "0" * 32)


def test_a_collector_that_refuses_costs_spans_only(cluster: Cluster, collector: Collector) -> None:
    collector.status = 400
    try:
        with Client(cluster.client_config()) as client:
            report = infer(client)
        deadline = time.monotonic() + 15
        while '"event": "telemetry"' not in (log := (cluster.logs / "party0.log").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        collector.status = 200
    assert all(line.startswith("{") for line in log.splitlines())
    assert report["online"]["rounds"] > 0


def test_the_tokens_of_a_generation_are_spans(
    cluster: Cluster, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each later stage, whole, by the same name at the coordinator and both parties."""
    small_shapes(monkeypatch, SEQ)
    description, weights, _ = random_model("gpt2", 1, SEQ)
    description = description.model_copy(update={"name": "writer"})
    prompt = Prompts(torch.zeros(1, SEQ, dtype=torch.int64), [SEQ])
    with Client(cluster.client_config()) as client:
        client.share_model(description, weights)
        job = generate(client, description, prompt, Plan(1, SEQ, 3), Sampler()).report["job"][:8]

    def mine(spans: list[Received]) -> list[Received]:
        traces = {span.trace for span in spans if span.attributes.get("ditto.job") == job}
        return [span for span in spans if span.trace in traces]

    def done(spans: list[Received]) -> bool:
        return sum(span.name == "job" for span in mine(spans)) == 3

    spans = mine(collector.until(done))
    by_id = {span.span: span for span in spans}
    for phase in ("offline", "online"):
        for token in (2, 3):
            steps = {span.service: span for span in spans if span.name == f"{phase} token {token}"}
            assert steps.keys() == {"coordinator", *PARTIES}
            for role in PARTIES:
                assert by_id[steps[role].parent] == steps["coordinator"] and steps[role].within(steps["coordinator"])
            assert (steps["party0"].attributes["ditto.rounds"] > 0) == (phase == "online")


def test_a_taken_port_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"dealer cannot serve metrics on {address}"):
            serve(address, "dealer", Metrics().registry)
        another = Cluster(tmp_path)
        another.configure(ports=_free_ports())
        amend(another, "dealer", metrics=address)
        try:
            with pytest.raises(ClusterError, match="cannot serve metrics"):
                another.up()
        finally:
            another.down()


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "http://127.0.0.1:1"])
def test_a_bad_address_is_refused(address: str, cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "dealer.yaml"
    path.write_text(cluster.config_path("dealer").read_text())
    config = yaml.safe_load(path.read_text()) | {"metrics": address}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="metrics"):
        load_config(path, DealerConfig)


def test_throughput_is_of_the_last_jobs() -> None:
    account = Account(recent=2)
    for online in (1.0, 2.0, 4.0):
        account.add("done", {"offline": 1.0, "online": online}, online + 0.5)
    account.add("peer_lost", {"offline": 9.0, "online": 9.0}, 18.0)
    state = account.state()
    assert (state.done, state.failed, state.cancelled, state.recent) == (3, 1, 0, 2)
    assert (state.offline_seconds, state.online_seconds) == (1.0, 3.0)
    assert account.pace() == 3.5  # a hint when to ask again goes by what jobs take, their phases overlapping

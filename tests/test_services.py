"""Four real processes over mutual TLS: who may call what, and how each bad request ends."""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
import torch
from calls import call

from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, embedded
from ditto.client.messages import terms_of
from ditto.engine.plain import run_plain
from ditto.engine.program import Program
from ditto.errors import (
    BY_CODE,
    EXIT_CODES,
    BadShare,
    CertificateError,
    ClusterError,
    ConfigError,
    DamagedFile,
    DittoError,
    MessageTooLarge,
    PeerAbsent,
    PeerLost,
    ReplayedJob,
    UnknownModel,
    VersionMismatch,
)
from ditto.models import Description, Plan, compile_stage, encode_inputs, random_batch, random_model
from ditto.models.compiled import program_for
from ditto.models.description import digest_of
from ditto.net.certs import Authority, init_certs, load_certificate, login_name
from ditto.net.config import ClientConfig, DealerConfig, PartyConfig, Tls, load_config
from ditto.net.identity import Identity
from ditto.net.messages import to_message
from ditto.net.transport import connect, short
from ditto.presets import preset_of
from ditto.service import dealer_service
from ditto.wire import control_pb2, control_pb2_grpc, dealer_pb2, dealer_pb2_grpc, party_pb2, party_pb2_grpc

SEQ = 16
Inputs = Callable[[Program], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with embedded() as running:
        yield running


@pytest.fixture(scope="module")
def config(cluster: Cluster) -> ClientConfig:
    return load_config(cluster.config_path("client"), ClientConfig)


@pytest.fixture(scope="module")
def description(config: ClientConfig) -> Description:
    """A small random model, shared once."""
    description, weights, _ = random_model("bert-tiny", 1, SEQ)
    description = description.model_copy(update={"name": "tiny"})
    with Client(config) as client:
        client.share_model(description, weights)
    return description


@pytest.fixture()
def inputs(description: Description) -> Inputs:
    return lambda program: encode_inputs(description, program, random_batch(1, SEQ))


def registered(config: ClientConfig) -> control_pb2.Model:
    ask = control_pb2.GetModelRequest(model="tiny")
    found: control_pb2.Model = call(config, "coordinator", lambda c: control_pb2_grpc.CoordinatorStub(c).GetModel(ask))
    return found


def answers(config: ClientConfig, description: Description, inputs: Inputs) -> None:
    """The cluster serves the next request."""
    with Client(config) as client:
        result = client.infer("tiny", inputs, 1, SEQ)
    program = compile_stage(description, Plan(1, SEQ))
    assert {n: tuple(x.shape) for n, x in result.outputs.items()} == {n: w.shape for n, w in program.outputs.items()}
    assert [layer["name"] for layer in result.report["layers"]] == program.layers
    cost = program.cost()
    assert result.report["online"]["rounds"] == cost.rounds


def test_every_error_has_its_own_number() -> None:
    assert len(EXIT_CODES) == len(BY_CODE) + 1  # and 0
    assert EXIT_CODES[16] == PeerAbsent.help


def test_inference_and_status(config: ClientConfig, description: Description, inputs: Inputs) -> None:
    answers(config, description, inputs)
    with Client(config) as client:
        status = client.status()
        assert [m.name for m in client.list_models()] == ["tiny"]
    assert [p["role"] for p in status["processes"]] == ["coordinator", "party0", "party1", "dealer"]
    assert all(p["serving"] for p in status["processes"])


def test_unknown_model(config: ClientConfig, description: Description, inputs: Inputs) -> None:
    with Client(config) as client, pytest.raises(UnknownModel, match="tiny"):
        client.infer("other", inputs, 1, SEQ)


def test_roles_are_kept_apart(config: ClientConfig) -> None:
    job = party_pb2.OpenJobRequest(job=secrets.token_hex(16))
    with pytest.raises(CertificateError, match=r"client/\S+ may not call OpenJob"):
        call(config, "party0", lambda c: party_pb2_grpc.PartyStub(c).OpenJob(job, timeout=5))
    with pytest.raises(CertificateError, match=r"client/\S+ may not call ModelSeed"):
        call(config, "dealer", lambda c: dealer_pb2_grpc.DealerStub(c).ModelSeed(dealer_pb2.ModelSeedRequest()))
    with pytest.raises(CertificateError, match=r"client/\S+ may not call Exchange"):
        call(config, "party0", lambda c: list(party_pb2_grpc.PeerLinkStub(c).Exchange(iter(()), timeout=5)))


def test_another_version(config: ClientConfig) -> None:
    request = control_pb2.ListModelsRequest()
    with pytest.raises(VersionMismatch, match="protocol"):
        call(config, "coordinator", lambda c: control_pb2_grpc.CoordinatorStub(c).ListModels(request), version=99)


def test_another_authority(config: ClientConfig, tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    wrong = Tls(ca=tmp_path / "ca.pem", cert=tmp_path / "client.pem", key=tmp_path / "client.key")
    with pytest.raises(CertificateError):
        call(config, "party1", lambda c: connect(c, "party1", 5.0), tls=wrong)
    mixed = wrong.model_copy(update={"ca": config.tls.ca})
    with pytest.raises(CertificateError, match="not signed"):
        call(config, "party1", lambda c: connect(c, "party1", 5.0), tls=mixed)


def test_an_expired_certificate(config: ClientConfig, tmp_path: Path) -> None:
    init_certs(tmp_path, [], lifetime=dt.timedelta(minutes=-1))
    old = Tls(ca=tmp_path / "ca.pem", cert=tmp_path / "client.pem", key=tmp_path / "client.key")
    with pytest.raises(CertificateError, match="expired on"):
        call(config, "party1", lambda c: connect(c, "party1", 5.0), tls=old)


def test_message_over_the_limit(config: ClientConfig) -> None:
    request = party_pb2.PutInputRequest(chunk=party_pb2.TensorChunk(data=bytes(5 << 20)))
    stub = party_pb2_grpc.PartyStub
    for limit in (4, 64):  # refused on this side, refused by the party
        with pytest.raises(MessageTooLarge):
            call(config, "party0", lambda c: stub(c).PutInput(iter([request]), timeout=10), max_message_mb=limit)


def test_absent_peer(config: ClientConfig) -> None:
    peers = config.peers.model_copy(update={"coordinator": "127.0.0.1:1"})
    absent = config.model_copy(update={"peers": peers, "connect_timeout_s": 1.0})
    with Client(absent) as client, pytest.raises(PeerAbsent, match="coordinator") as caught:
        client.list_models()
    assert caught.value.peer == "coordinator"


def test_replayed_job(cluster: Cluster, config: ClientConfig, description: Description) -> None:
    tls = load_config(cluster.config_path("dealer"), DealerConfig).tls
    coordinator = Tls(ca=tls.ca, cert=cluster.certs / "coordinator.pem", key=cluster.certs / "coordinator.key")
    model = registered(config)
    plan = Plan(64, SEQ)  # more correlations than fit on their way: the dealer is not done when party 0 leaves
    fingerprint = program_for(model.description, plan).fingerprint
    name = secrets.token_hex(16)
    request = party_pb2.OpenJobRequest(
        job=name, model="tiny", share_id=model.share_id, plan=to_message(plan), fingerprint=fingerprint,
        client=model.owner, description_digest=digest_of(model.description),
    )  # fmt: skip

    def open_job(channel: grpc.Channel) -> None:
        party_pb2_grpc.PartyStub(channel).OpenJob(request, timeout=30)

    def close_job(channel: grpc.Channel) -> None:
        party_pb2_grpc.PartyStub(channel).CloseJob(party_pb2.CloseJobRequest(job=name, reason="test"), timeout=5)

    call(config, "party0", open_job, tls=coordinator, role="coordinator")
    call(config, "party0", close_job, tls=coordinator, role="coordinator")
    with pytest.raises(ReplayedJob, match=name):
        call(config, "party0", open_job, tls=coordinator, role="coordinator")

    def dealt_job(channel: grpc.Channel) -> str:
        return dealer_pb2_grpc.DealerStub(channel).Inventory(dealer_pb2.InventoryRequest(), timeout=5).job

    until = time.monotonic() + 30  # the dealer learns of party 0's leaving when it gets round to it
    while call(config, "dealer", dealt_job, tls=coordinator, role="coordinator") == short(name):
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(ReplayedJob, match=name):  # new to party 1, known to the dealer
        call(config, "party1", open_job, tls=coordinator, role="coordinator")
    request.job, request.fingerprint = secrets.token_hex(16), "0" * 32
    with pytest.raises(VersionMismatch):
        call(config, "party0", open_job, tls=coordinator, role="coordinator")


def test_a_job_that_one_party_never_joined_is_dropped() -> None:
    dropped: list[Any] = []
    put = dropped.append
    ages = {"old": 31.0, "both": 31.0, "new": 29.0}
    jobs = {
        name: SimpleNamespace(joined=({0, 1} if name == "both" else {0}), began=time.monotonic() - age, drop=put)
        for name, age in ages.items()
    }
    service = SimpleNamespace(
        _lock=threading.Lock(), _jobs=jobs, _end=lambda job, outcome: dropped.append(outcome),
        _config=SimpleNamespace(idle_timeout_s=30.0),
    )  # fmt: skip
    dealer_service.DealerService._drop_abandoned(service)  # type: ignore[arg-type]
    assert list(jobs) == ["both", "new"] and dropped[0] == "aborted" and "never joined" in str(dropped[1])


@pytest.mark.parametrize("wrong", ["shape", "ring", "length", "name"])
def test_bad_share(wrong: str, config: ClientConfig, description: Description, inputs: Inputs) -> None:
    program = compile_stage(description, Plan(1, SEQ))
    wire = program.inputs["keep"]
    terms = terms_of(registered(config), Plan(1, SEQ), program)

    def send(event: dict[str, Any]) -> None:
        if event["event"] != "queued" and "job" in event:
            header = party_pb2.InputHeader(
                job=event["job"], name="keep", ring=wire.ring, shape=list(wire.shape), terms=terms
            )
            if wrong == "shape":
                header.shape.append(2)
            elif wrong == "ring":
                header.ring = 8
            elif wrong == "name":
                header.name = "nothing"
            chunk = party_pb2.TensorChunk(data=bytes(7 if wrong == "length" else wire.nbytes))
            parts = [party_pb2.PutInputRequest(header=header), party_pb2.PutInputRequest(chunk=chunk)]
            call(config, "party1", lambda c: party_pb2_grpc.PartyStub(c).PutInput(iter(parts), timeout=10))

    with Client(config) as client, pytest.raises(BadShare):
        client.infer("tiny", inputs, 1, SEQ, send)
    answers(config, description, inputs)


def test_input_of_the_wrong_shape(config: ClientConfig, description: Description, inputs: Inputs) -> None:
    with Client(config) as client, pytest.raises(BadShare, match="keep"):
        client.infer("tiny", lambda p: inputs(p) | {"keep": torch.zeros(3)}, 1, SEQ)
    answers(config, description, inputs)


def test_nothing_to_fetch(config: ClientConfig) -> None:
    request = party_pb2.FetchOutputRequest(job="0" * 32, name="hidden")
    with pytest.raises(ClusterError, match="no open job"):
        call(config, "party0", lambda c: list(party_pb2_grpc.PartyStub(c).FetchOutput(request, timeout=5)))


def test_an_abandoned_job_leaves_the_cluster_free(
    config: ClientConfig, description: Description, inputs: Inputs
) -> None:
    class Stop(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "layer":
            raise Stop

    with Client(config) as client, pytest.raises(Stop):
        client.infer("tiny", inputs, 1, SEQ, stop)
    answers(config, description, inputs)


def test_jobs_queue_up(config: ClientConfig, description: Description, inputs: Inputs) -> None:
    threads = [threading.Thread(target=answers, args=(config, description, inputs)) for _ in range(3)]
    failures: list[object] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        threading.excepthook = hook
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_several_clients_jobs_run_at_once(
    cluster: Cluster, config: ClientConfig, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at once, each with its own inputs: one whose client leaves and one with a bad share disturb no other."""
    weights, program = random_model("bert-tiny", 1, SEQ)[1], compile_stage(description, Plan(1, SEQ))
    Authority(cluster.certs).issue(Identity("client", "other"), [], cluster.certs / "client-other")
    stem = cluster.certs / "client-other"
    tls = Tls(ca=cluster.certs / "ca.pem", cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key"))
    other = config.model_copy(update={"tls": tls})
    asked = [encode_inputs(description, program, random_batch(1, SEQ, seed=seed)) for seed in range(4)]
    all_there, start, running = threading.Barrier(4, timeout=60), Client._start, list[tuple[str, ...]]()

    class Stop(Exception):
        pass

    def begin(self: Client, *args: Any) -> None:
        all_there.wait()  # each has been told that its job was accepted
        running.append(tuple(self.status()["running"]))
        all_there.wait()
        start(self, *args)

    def ask(number: int, on_event: Callable[[dict[str, Any]], None] | None, **changes: torch.Tensor) -> Any:
        with Client(config if number % 2 else other) as client:
            result = client.infer("tiny", lambda _: asked[number] | changes, 1, SEQ, on_event)
            return result.outputs

    def leave(event: dict[str, Any]) -> None:
        if event["event"] == "layer":
            raise Stop

    with Client(config) as client:
        client.grant_model("tiny", "other")
    monkeypatch.setattr(Client, "_start", begin)
    with ThreadPoolExecutor(4) as many:
        right = [many.submit(ask, number, None) for number in (0, 1)]
        left = many.submit(ask, 2, leave)
        bad = many.submit(ask, 3, None, keep=torch.zeros(3))
        for number, answer in enumerate(right):
            expected = run_plain(program, asked[number], weights)
            for name, value in answer.result(60).items():
                assert (value - expected[name]).abs().max() <= preset_of("ditto").ulp
        assert isinstance(left.exception(60), Stop) and isinstance(bad.exception(60), BadShare)
    assert all(len(set(names)) == 4 for names in running)


@pytest.mark.parametrize("role", ["party0", "party1", "dealer"])
def test_a_killed_process_is_named(
    role: str, cluster: Cluster, config: ClientConfig, description: Description, inputs: Inputs
) -> None:
    """Killed when the job is accepted: its first layer cannot end. Afterwards `up` repairs the cluster."""
    killed = 0.0

    def kill(event: dict[str, Any]) -> None:
        nonlocal killed
        if event["event"] == "layer" and event["layer"] == 0 and event["phase"] == "offline":
            pid = next(p.pid for p in cluster.status() if p.role == role)
            assert pid is not None
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    with Client(config) as client:
        try:
            client.infer("tiny", inputs, 1, SEQ, kill)
            assert role == "dealer"  # everything of a job this small may be dealt by then
        except DittoError as error:
            assert isinstance(error, PeerLost) and error.peer == role and role in str(error)
        assert time.monotonic() - killed < 10
        with pytest.raises(PeerAbsent, match=role) as caught:
            client.infer("tiny", inputs, 1, SEQ)
        assert caught.value.peer == role
    cluster.up()
    answers(config, description, inputs)  # weight shares were read back from disk


def test_a_damaged_share_is_named(
    cluster: Cluster, config: ClientConfig, description: Description, inputs: Inputs
) -> None:
    (path,) = (cluster.root / "data" / "party1" / "models").glob("*/opened.safetensors")
    whole = path.read_bytes()
    party = psutil.Process(next(p.pid for p in cluster.status() if p.role == "party1"))
    party.kill()
    party.wait(10)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cluster.up()
    with Client(config) as client, pytest.raises(DamagedFile, match=r"party1: .*opened\.safetensors: ") as caught:
        client.infer("tiny", inputs, 1, SEQ)
    assert caught.value.peer == "party1"
    path.write_bytes(whole)
    answers(config, description, inputs)


def test_secrets_on_disk_are_private(cluster: Cluster, description: Description) -> None:
    files = [path for path in (cluster.root / "data").rglob("*") if path.is_file()]
    assert any(path.name == "opened.safetensors" for path in files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_logs_are_json(cluster: Cluster, description: Description) -> None:
    lines = (cluster.logs / "party0.log").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert "serving" in events and "model active" in events


def test_configuration_errors(tmp_path: Path, cluster: Cluster) -> None:
    path = tmp_path / "party0.yaml"
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(path, PartyConfig)
    path.write_text(cluster.config_path("party0").read_text() + "surprise: 1\n")
    with pytest.raises(ConfigError, match="surprise"):
        load_config(path, PartyConfig)


def test_new_certificates_need_no_restart(
    cluster: Cluster, config: ClientConfig, description: Description, inputs: Inputs
) -> None:
    """Not even of another authority: every server reads its files again, as a server and as a caller."""
    before = {process.role: process.pid for process in cluster.status()}
    owner = Identity("client", login_name())  # of the model
    init_certs(cluster.certs, [], client=owner.name)
    answers(config, description, inputs)
    assert Authority(cluster.certs).revoke(load_certificate(cluster.certs / "client.pem"))
    with Client(config) as client, pytest.raises(CertificateError, match=f"{owner} was revoked"):
        client.infer("tiny", inputs, 1, SEQ)
    Authority(cluster.certs).issue(owner, [], cluster.certs / "client")
    answers(config, description, inputs)
    assert {process.role: process.pid for process in cluster.status()} == before

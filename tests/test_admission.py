"""What a server refuses before it takes memory, whose calls cannot silence it, and how long it waits for a client."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calls
import grpc
import psutil
import pytest
import torch
import yaml

from ditto.client import local_cluster
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster
from ditto.client.messages import ask_of, terms_of
from ditto.engine.program import PART
from ditto.errors import BadDescription, Busy, DittoError, LimitExceeded
from ditto.models import Checkpoint, Description, Dimensions, Plan, describe, encode_inputs, encode_weights, parse
from ditto.models.architecture import Tensors
from ditto.models.compiled import program_for, weights_of
from ditto.models.description import Neurons, digest_of
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Batch
from ditto.names import PARTIES, SERVERS
from ditto.net import pools
from ditto.net.certs import login_name
from ditto.net.config import ClientConfig, Limits, Tls, load_config
from ditto.net.messages import to_message
from ditto.net.pools import Pace, Watchdog
from ditto.net.transport import connect, from_rpc_error, open_channel
from ditto.ring import carrier
from ditto.service import limits as limits_module
from ditto.service.limits import admit_job, admit_model, need_of, peak_of, weights_in
from ditto.wire import (
    control_pb2,
    control_pb2_grpc,
    dealer_pb2,
    dealer_pb2_grpc,
    party_pb2,
    party_pb2_grpc,
)

SEQ, IDLE, START = 8, 3.0, 1.5
PROMPT = 3.0  # seconds for a health check; not derived: a silenced server never answers, the rest is a busy machine
MB = 1 << 20
OWN: dict[str, dict[str, Any]] = {  # of one server
    "coordinator": {"give_way_s": START, "jobs_at_once": 1},
    "party1": {"jobs_mb": 8},
    "dealer": {"jobs_mb": 16},
}


def small_model(vocabulary: int = 64) -> tuple[Description, Tensors]:
    d = Dimensions(
        hidden=16, layers=1, heads=2, inner=32, vocabulary=vocabulary, positions=512, token_types=2, embedding=16,
        epsilon=1e-12,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: float("norm" in name and name.endswith("weight")) + 0.05 * torch.randn(shape, generator=generator)
        for name, shape in architecture_of("BertModel").shapes(d).items()
    }
    description, arranged = describe(Checkpoint("BertModel", d, tensors), "small", [question()])
    return description, encode_weights(description, arranged.tensors)


def question() -> Batch:
    zeros = torch.zeros((1, SEQ), dtype=torch.long)
    return Batch(zeros, zeros, torch.ones_like(zeros))


def resized(description: Description, **changes: Any) -> Description:
    layers = changes.get("layers", 1)
    dimensions = description.dimensions.model_copy(update=changes)
    layer = description.ranges.layers[0]
    neurons = (Neurons(count=dimensions.inner, bound=layer.neurons[-1].bound),)
    wide = (layer.model_copy(update={"neurons": neurons}),) * layers
    ranges = description.ranges.model_copy(update={"layers": wide})
    return description.model_copy(update={"dimensions": dimensions, "ranges": ranges})


@pytest.fixture(scope="module")
def small() -> tuple[Description, Tensors]:
    return small_model()


@pytest.fixture(scope="module")
def text(small: tuple[Description, Tensors]) -> str:
    return small[0].text()


# Static limits ------------------------------------------------------------------------------------


def test_what_the_shapes_of_the_benchmarks_take_is_admitted(text: str) -> None:
    for layers, hidden, inner, words in ((12, 768, 3072, 50_257), (24, 1024, 4096, 50_257)):
        large = resized(parse(text), layers=layers, hidden=hidden, inner=inner, embedding=hidden, vocabulary=words)
        admit_model(large.text(), Limits(), "party0")
        plan = Plan(1, 512)
        admit_job(large.text(), plan, program_for(large.text(), plan).fingerprint, Limits(), "party0")


def test_the_closed_form_counts_less_than_the_program(text: str) -> None:
    wires = weights_of(text)
    elements = sum(torch.Size(wire.shape).numel() for wire in wires.values())
    known = weights_in(parse(text).dimensions)
    assert 0.9 * elements < known <= elements
    assert min(carrier(wire.ring).itemsize for wire in wires.values()) >= limits_module.NARROWEST


@pytest.mark.parametrize(
    ("changes", "field", "error"),
    [
        ({"layers": 512}, "max_layers", LimitExceeded),
        ({"vocabulary": 2_000_000, "embedding": 65_536}, "max_model_mb", LimitExceeded),
        ({"vocabulary": 20_000_000}, "vocabulary", BadDescription),
    ],
)
def test_models_beyond_a_limit(changes: dict[str, Any], field: str, error: type[DittoError], text: str) -> None:
    description, began = resized(parse(text), **changes).text(), time.thread_time()
    with pytest.raises(error, match=field):
        admit_model(description, Limits(), "party0")
    assert time.thread_time() - began < 1


def test_a_limit_says_what_was_asked_and_what_is_admitted(text: str) -> None:
    with pytest.raises(
        LimitExceeded, match=r"^dealer: a model whose weights take .*MB; it takes at most 1 \(max_model_mb\)$"
    ):
        admit_model(resized(parse(text), vocabulary=100_000).text(), Limits(max_model_mb=1), "dealer")


@pytest.mark.parametrize(
    ("plan", "changes", "field"),
    [
        (Plan(4096, 16), {}, "max_batch"),
        (Plan(512, 512), {}, "max_tokens"),
        (Plan(1, 512, tokens=65_536), {}, "max_tokens"),
        (Plan(128, 512), {"vocabulary": 1_500_000}, "max_job_mb"),
        (Plan(128, 512), {"heads": 16}, "max_job_mb"),
    ],
)
def test_jobs_beyond_a_limit(plan: Plan, changes: dict[str, Any], field: str, text: str) -> None:
    """Before the fingerprint is looked at, which takes a compiled program."""
    description = resized(parse(text), **changes).text()
    for peer in ("coordinator", "party1", "dealer"):
        began = time.thread_time()
        with pytest.raises(LimitExceeded, match=field) as caught:
            admit_job(description, plan, "0" * 32, Limits(max_job_mb=512), peer)
        assert time.thread_time() - began < 1 and caught.value.peer == peer


def test_the_estimate_of_a_job_is_checked_too(text: str) -> None:
    """One that the closed form admits."""
    plan = Plan(4, 64)
    program = program_for(text, plan)
    peak = peak_of(program)
    assert peak.dealer > max(program.cost(layer).dealer for layer in range(2))
    assert peak.party > peak_of(program_for(text, Plan(1, 64))).party
    admit_job(text, plan, program.fingerprint, Limits(max_job_mb=-(-peak.party // MB)), "party0")
    with pytest.raises(LimitExceeded, match=r"holds about .* MB; it takes at most"):
        admit_job(text, plan, program.fingerprint, Limits(max_job_mb=peak.party // MB), "party0")


# Streams ------------------------------------------------------------------------------------------


def frame(size: int) -> party_pb2.Frame:
    return party_pb2.Frame(data=bytes(size))


def test_an_upload_that_pauses_ends() -> None:
    left = threading.Event()

    def requests() -> Iterator[party_pb2.Frame]:
        yield frame(1)
        left.wait(30)

    began, kept = time.monotonic(), Pace(idle_s=0.3).keep(requests(), "party0")
    assert next(kept).data == b"\0"
    with pytest.raises(LimitExceeded, match=r"party0: .*0.3 s \(upload_idle_s\)"):
        next(kept)
    assert time.monotonic() - began < 5
    left.set()


def test_an_upload_that_trickles_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WINDOW_S", 0.3)

    def trickle() -> Iterator[party_pb2.Frame]:
        while True:
            time.sleep(0.05)
            yield frame(10)

    with pytest.raises(LimitExceeded, match="upload_min_kb_s"):
        for _ in Pace(idle_s=5, min_rate=1024).keep(trickle(), "party0"):
            pass


def test_what_the_server_takes_is_not_the_clients_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WINDOW_S", 0.2)
    count = 0
    for request in Pace(idle_s=0.2, min_rate=1 << 40).keep(iter([frame(3), frame(4)]), "party0"):
        time.sleep(0.5)
        count += len(request.data)
    assert count == 7


def test_the_errors_of_a_stream_come_through_and_its_reader_ends() -> None:
    def broken() -> Iterator[party_pb2.Frame]:
        yield frame(1)
        raise grpc.RpcError("gone")

    kept = Pace().keep(broken(), "party0")
    next(kept)
    with pytest.raises(grpc.RpcError, match="gone"):
        next(kept)
    stopped = Pace().keep(iter([frame(1)] * 9), "party0")
    next(stopped)
    stopped.close()
    until = time.monotonic() + 5
    while any(thread.name == "upload" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_watchdog_cancels_who_is_late() -> None:
    dog, cancelled = Watchdog(tick=0.05), threading.Event()
    late: Any = SimpleNamespace(cancel=cancelled.set)
    in_time: Any = SimpleNamespace(cancel=lambda: pytest.fail("it was in time"))
    for _ in range(2):  # its thread ended meanwhile
        with dog.within(30, in_time), dog.within(0.1, late):
            assert cancelled.wait(5)
        cancelled.clear()
        time.sleep(0.2)


# Servers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, small: tuple[Description, Tensors]) -> Iterator[Cluster]:
    """With short deadlines, and one model."""
    cluster = Cluster(tmp_path_factory.mktemp("admission"))
    cluster.configure(ports=local_cluster._free_ports())
    for role in SERVERS:
        path = cluster.config_path(role)
        config = yaml.safe_load(path.read_text()) | {"upload_idle_s": IDLE, "hold_mb": 1}
        path.write_text(yaml.safe_dump(config | OWN.get(role, {})))
    try:
        cluster.up()
        with Client(cluster.client_config()) as client:
            client.share_model(*small)
            client.infer("small", lambda p: encode_inputs(small[0], p, question()), 1, SEQ)
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def config(cluster: Cluster) -> ClientConfig:
    return load_config(cluster.config_path("client"), ClientConfig)


@pytest.fixture(scope="module")
def share_id(config: ClientConfig) -> str:
    with Client(config) as client:
        return str(client._model("small").share_id)


def call(cluster: Cluster, role: str, peer: str, method: Callable[[grpc.Channel], Any]) -> Any:
    """One call of `role` to `peer`; raises the DittoError that came back."""
    config = cluster.client_config()
    tls = Tls(ca=config.tls.ca, cert=cluster.certs / f"{role}.pem", key=cluster.certs / f"{role}.key")
    return calls.call(config, peer, method, tls, role, max_message_mb=64)


def refused(cluster: Cluster, peer: str, method: Callable[[], Any], field: str) -> None:
    """With a second of processor time at most, and no memory but for the message: up to 4 MB in a few copies."""
    server = psutil.Process(next(p.pid for p in cluster.status() if p.role == peer))
    memory, seconds = server.memory_info().rss, sum(server.cpu_times()[:2])
    with pytest.raises(LimitExceeded, match=field) as caught:
        method()
    assert caught.value.peer == peer
    assert sum(server.cpu_times()[:2]) - seconds < 1
    assert server.memory_info().rss - memory < 32 * MB


def test_every_server_refuses_a_large_job_itself(cluster: Cluster, share_id: str, text: str) -> None:
    plan = Plan(4096, 16)
    names = {"model": "small", "share_id": share_id, "plan": to_message(plan)}
    names["fingerprint"] = program_for(text, plan).fingerprint
    job, owner, digest = secrets.token_hex(16), f"client/{login_name()}", digest_of(text)
    request = ask_of(party_pb2.JobTerms(owner=owner, description_digest=digest, **names))
    assert request.ByteSize() < 100
    run: dict[tuple[str, str], Callable[[grpc.Channel], Any]] = {
        ("client", "coordinator"): lambda c: list(control_pb2_grpc.CoordinatorStub(c).RunJob(request, timeout=9)),
        ("party0", "dealer"): lambda c: list(
            dealer_pb2_grpc.DealerStub(c).Correlations(dealer_pb2.CorrelationsRequest(job=job, **names), timeout=9)
        ),
    }
    for party in PARTIES:
        run["coordinator", party] = lambda c: party_pb2_grpc.PartyStub(c).OpenJob(
            party_pb2.OpenJobRequest(job=job, client=owner, description_digest=digest, **names), timeout=9
        )
    for (role, peer), method in run.items():
        refused(cluster, peer, partial(call, cluster, role, peer, method), "max_batch")


def test_parties_and_dealer_hold_all_jobs_against_their_own_limits(cluster: Cluster, share_id: str, text: str) -> None:
    """Whatever a coordinator opens. Once a job is gone there is room for another."""
    plan, owner = Plan(128, SEQ, hold_mb=1), f"client/{login_name()}"
    need = need_of(text, plan)
    assert MB * OWN["party1"]["jobs_mb"] / 2 < need.waiting and MB * OWN["dealer"]["jobs_mb"] / 2 < need.dealer
    names = {"model": "small", "share_id": share_id, "plan": to_message(plan), "client": owner}
    names |= {"fingerprint": program_for(text, plan).fingerprint, "description_digest": digest_of(text)}

    def open_job(job: str, *parties: str) -> None:
        ask = party_pb2.OpenJobRequest(job=job, **names)
        for party in parties:
            call(cluster, "coordinator", party, lambda c: party_pb2_grpc.PartyStub(c).OpenJob(ask, timeout=30))

    def close_job(job: str) -> None:
        ask = party_pb2.CloseJobRequest(job=job, reason="test")
        for party in PARTIES:
            call(cluster, "coordinator", party, lambda c: party_pb2_grpc.PartyStub(c).CloseJob(ask, timeout=9))

    first, second = secrets.token_hex(16), secrets.token_hex(16)
    open_job(first, "party1")
    with pytest.raises(Busy, match=r"^party1: .*jobs_mb.*; try again in 5 s") as caught:
        open_job(secrets.token_hex(16), "party1")
    assert caught.value.peer == "party1" and caught.value.retry_s == 5
    with pytest.raises(Busy, match=r"^dealer: .*jobs_mb.*; try again in 5 s"):
        open_job(secrets.token_hex(16), "party0")  # which has room for it
    open_job(first, "party0")
    close_job(first)
    open_job(second, *PARTIES)
    close_job(second)
    with pytest.raises(LimitExceeded, match="jobs_mb"):
        admit_job(text, plan, program_for(text, plan).fingerprint, Limits(hold_mb=1, jobs_mb=1), "party0")


def test_every_server_refuses_a_large_description_itself(cluster: Cluster, text: str) -> None:
    raw = json.loads(text)
    raw["ranges"]["layers"] *= 15_000
    raw["dimensions"]["layers"] = 15_000
    long = json.dumps(raw)[: (4 * MB) - 1000]
    assert len(long) > 3 * MB
    share_id = secrets.token_hex(16)
    names = {"model": "small", "share_id": share_id, "description": long}
    put = party_pb2.PutModelRequest(header=party_pb2.ModelHeader(seed=bytes(16), **names))
    register = control_pb2.RegisterModelRequest(model=control_pb2.Model(**names))
    run: dict[tuple[str, str], Callable[[grpc.Channel], Any]] = {
        ("client", "coordinator"): lambda c: control_pb2_grpc.CoordinatorStub(c).RegisterModel(
            iter([register]), timeout=9
        ),
        ("party0", "dealer"): lambda c: dealer_pb2_grpc.DealerStub(c).ModelSeed(
            dealer_pb2.ModelSeedRequest(digest="0" * 64, **names), timeout=9
        ),
    }
    for party in PARTIES:
        run["client", party] = lambda c: party_pb2_grpc.PartyStub(c).PutModel(iter([put]), timeout=9)
    for (role, peer), method in run.items():
        refused(cluster, peer, partial(call, cluster, role, peer, method), "max_description_kb")
    assert not list((cluster.root / "data").rglob(f"*{share_id}*"))


def test_a_job_runs_in_parts_as_the_servers_are_configured(
    config: ClientConfig, small: tuple[Description, Tensors]
) -> None:
    """The client learns from the coordinator how large they are; a server that has them otherwise refuses."""
    layers: list[str] = []
    texts = Batch(*(x.repeat(32, 2) for x in (question().ids, question().types, question().mask)))
    with Client(config) as client:
        result = client.infer(
            "small", lambda p: encode_inputs(small[0], p, texts), *texts.ids.shape,
            on_event=lambda event: layers.append(event.get("name", "")),
        )  # fmt: skip
    assert f"layer 0{PART}2" in layers and result.outputs["hidden"].shape == (32 * 2 * SEQ, 16)


def serves(config: ClientConfig, small: tuple[Description, Tensors]) -> None:
    """Every server answers its health check, and a job runs."""
    with Client(config) as client:
        for role in SERVERS:
            with open_channel(config.peers.of(role), role, config.tls, "client") as channel:
                grpc.channel_ready_future(channel).result(10)  # the handshake is this machine's load, too
                began = time.monotonic()
                connect(channel, role, PROMPT)
                assert time.monotonic() - began < PROMPT
        result = client.infer("small", lambda p: encode_inputs(small[0], p, question()), 1, SEQ)
        assert result.outputs


@pytest.mark.parametrize("upload", ["PutModel", "PutInput"])
def test_idle_uploads_silence_nobody(
    upload: str, cluster: Cluster, config: ClientConfig, small: tuple[Description, Tensors]
) -> None:
    """Two shares of four parts of threads are left; who has sent nothing for `upload_idle_s` is told so."""
    before, stop = sorted((cluster.root / "data").rglob("*")), threading.Event()

    def nothing() -> Iterator[Any]:
        stop.wait(60)
        yield from ()

    with open_channel(config.peers.of("party0"), "party0", config.tls, "client") as channel:
        stub = party_pb2_grpc.PartyStub(channel)
        calls = [getattr(stub, upload).future(nothing()) for _ in range(40)]
        try:
            time.sleep(0.5)
            if upload == "PutModel":
                serves(config, small)
            errors = [from_rpc_error(call.exception(timeout=30), "party0") for call in calls]
        finally:
            stop.set()
    assert {type(error) for error in errors} == {LimitExceeded, Busy}
    assert sum(isinstance(error, LimitExceeded) for error in errors) == Limits().max_uploads
    assert all("upload_idle_s" in str(e) if isinstance(e, LimitExceeded) else "try again in" in str(e) for e in errors)
    assert {error.retry_s for error in errors if isinstance(error, Busy)} == {pools.RETRY_S}
    assert sorted((cluster.root / "data").rglob("*")) == before
    serves(config, small)


def test_calls_without_a_request_silence_nobody(
    cluster: Cluster, config: ClientConfig, small: tuple[Description, Tensors]
) -> None:
    """Headers only: grpc would keep a thread for each for as long as the client likes; and connections of strangers."""
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait(60)
        yield from ()

    host, port = config.peers.coordinator.split(":")
    strangers = [socket.create_connection((host, int(port)), timeout=4 * pools.FIRST_S) for _ in range(50)]
    methods = ("/ditto.v1.Coordinator/GetModel", "/ditto.v1.Coordinator/RunJob", "/grpc.health.v1.Health/Check")
    with open_channel(config.peers.coordinator, "coordinator", config.tls, "client") as channel:
        calls = [channel.stream_unary(method).future(nothing()) for method in methods for _ in range(35)]
        try:
            time.sleep(0.5)
            serves(config, small)
            ended = [call.exception(timeout=4 * pools.FIRST_S) for call in calls]
        finally:
            stop.set()
    assert all(error is not None for error in ended)
    for stranger in strangers:
        with stranger:
            while stranger.recv(1024):  # the server's settings, then the end
                pass


def test_forty_clients_that_wait_are_all_served(config: ClientConfig, small: tuple[Description, Tensors]) -> None:
    def ask() -> int:
        with Client(config.model_copy(update={"connect_timeout_s": 60.0})) as client:
            return len(client.infer("small", lambda p: encode_inputs(small[0], p, question()), 1, SEQ).outputs)

    with ThreadPoolExecutor(40) as many:
        asked = [many.submit(ask) for _ in range(40)]
        served, left = wait(asked, timeout=240)
    assert not left and all(future.result() == 1 for future in served)


def test_a_client_that_does_not_start_its_job_gives_way(
    config: ClientConfig, small: tuple[Description, Tensors]
) -> None:
    """Its job stands aside, and runs when its inputs come; a second one of the same client ends."""
    plan = Plan(1, SEQ, hold_mb=1)
    program = program_for(small[0].text(), plan)
    with Client(config) as client:
        terms = terms_of(client._model("small"), plan, program)

        def dawdle(accepted: Future[control_pb2.Accepted], ended: Future[DittoError | None]) -> None:
            try:
                for event in client._control.RunJob(ask_of(terms)):
                    if event.HasField("accepted"):
                        accepted.set_result(event.accepted)
                ended.set_result(None)
            except grpc.RpcError as error:
                ended.set_result(from_rpc_error(error, "coordinator"))

        first, second = ((Future(), Future()) for _ in range(2))
        threading.Thread(target=dawdle, args=first, daemon=True).start()
        accepted = first[0].result(20)
        time.sleep(2 * START)
        assert not first[1].done()  # nobody waits
        serves(config, small)
        threading.Thread(target=dawdle, args=second, daemon=True).start()
        second[0].result(20)
        serves(config, small)
        assert "another job of this client" in str(second[1].result(5))
        terms.share_id = accepted.share_id
        client._start(accepted.job, terms, 0, program, encode_inputs(small[0], program, question()))
        assert first[1].result(20) is None


def test_threads_and_files_return(cluster: Cluster, config: ClientConfig, small: tuple[Description, Tensors]) -> None:
    """After all of the above: what pools keep is bounded by them, and no reader of an upload is left."""
    serves(config, small)
    party = psutil.Process(next(p.pid for p in cluster.status() if p.role == "party0"))
    names = [(Path("/proc") / str(party.pid) / "task" / str(t.id) / "comm").read_text() for t in party.threads()]
    assert len(names) < 160

"""Emulated networks: profiles, the closed form of a link, real links that keep to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
import yaml
from typer.testing import CliRunner

from ditto.cli import app
from ditto.cli.run import network_of
from ditto.client.client import Client
from ditto.client.local_cluster import SHAPED, Cluster, _free_ports, embedded
from ditto.errors import ClusterError, ConfigError
from ditto.models import encode_inputs, random_batch, random_model
from ditto.net.config import DealerConfig, PartyConfig, load_config
from ditto.net.emulation import _STALL, _STALL_ROUND_TRIPS, Link, Network, network, networks
from ditto.net.link_channel import LinkChannel
from ditto.net.peerlink import PeerLink
from ditto.net.seal import sealing, unsealing
from ditto.service.party_service import LinkService
from ditto.wire.party_pb2 import Frame

MB = 1_000_000
EXCHANGE = "/ditto.v1.PeerLink/Exchange"
SLOW = Network(bandwidth_mbps=80, rtt_ms=60)  # 10 MB a second


# Profiles -----------------------------------------------------------------------------------------


def test_built_in_profiles() -> None:
    found = {name: (profile.bandwidth_mbps, profile.rtt_ms) for name in networks() if (profile := network(name))}
    assert found == {
        "loopback": (None, 0),
        "lan": (5000, 0.4),
        "wan": (400, 40),
        "sigma-lan": (9400, 0.05),
        "sigma-wan": (305, 60),
        "puma": (5000, 1),
    }
    assert all(network(name).name == name for name in found)


def test_profile_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "satellite.yaml"
    path.write_text("bandwidth_mbps: 100\nrtt_ms: 600\n")
    assert network(path) == network(str(path)) == Network(name="satellite", bandwidth_mbps=100, rtt_ms=600)
    path.write_text("name: moon\nrtt_ms: 2600\n")
    assert network(path) == Network(name="moon", rtt_ms=2600)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rtt_ms: 1\nlatency: 2\n", "latency"),
        ("bandwidth_mbps: 100\n", "rtt_ms"),
        ("rtt_ms: -1\n", "rtt_ms"),
        ("rtt_ms: 10001\n", "rtt_ms"),
        ("rtt_ms: .nan\n", "rtt_ms"),
        ("rtt_ms: '40'\n", "rtt_ms"),
        ("rtt_ms: true\n", "rtt_ms"),
        ("bandwidth_mbps: 0\nrtt_ms: 1\n", "bandwidth_mbps"),
        ("bandwidth_mbps: -5\nrtt_ms: 1\n", "bandwidth_mbps"),
        ("bandwidth_mbps: .inf\nrtt_ms: 1\n", "bandwidth_mbps"),
        ("bandwidth_mbps: .nan\nrtt_ms: 1\n", "bandwidth_mbps"),
        ("bandwidth_mbps: 2.0e+6\nrtt_ms: 1\n", "bandwidth_mbps"),
        ("- 1\n", "not a mapping"),
        ("{", "not YAML"),
    ],
)
def test_bad_profiles_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        network(path)


def test_unknown_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lann'.*lan, loopback, puma"):
        network("lann")
    with pytest.raises(ConfigError, match="cannot read"):
        network(tmp_path / "absent.yaml")
    result = CliRunner().invoke(app, ["bench", "model", "--network", "lann"])
    assert result.exit_code == ConfigError.exit_code


# The closed form ----------------------------------------------------------------------------------


def test_one_message() -> None:
    assert Link(SLOW).arrival(5.0, 2 * MB) == pytest.approx(5.0 + 0.2 + 0.03)
    assert Link(Network(rtt_ms=60)).arrival(5.0, 2 * MB) == pytest.approx(5.03)
    assert Link(None).arrival(5.0, 2 * MB) == 5.0


def test_messages_queue_for_the_interface_but_travel_together() -> None:
    link = Link(SLOW)
    arrivals = [link.arrival(5.0, MB), link.arrival(5.0, MB), link.arrival(5.15, MB)]
    assert arrivals == pytest.approx([5.13, 5.23, 5.33])


def test_an_idle_link_gives_no_credit() -> None:
    link = Link(SLOW)
    assert link.arrival(5.0, MB) == pytest.approx(5.13)
    assert link.arrival(9.0, MB) == pytest.approx(9.13)
    assert link.arrival(9.0, MB) == pytest.approx(9.23)


@pytest.mark.parametrize(
    ("profile", "stall"),
    [(SLOW, _STALL_ROUND_TRIPS * 0.06), (Network(bandwidth_mbps=80, rtt_ms=0.4), _STALL)],
)
def test_a_stalled_receiver_stops_its_sender(profile: Network, stall: float) -> None:
    """Ten chunks wait in the sender while the receiver sleeps 3 s after the first: when it wakes, only what buffers of
    a link this long hold has been sent in the meantime."""
    now, delay = 5.0, profile.rtt_ms / 2000
    link = Link(profile, clock=lambda: now)
    now = link.arrival(link.sendable(5.0), MB)
    assert now == pytest.approx(5.1 + delay)
    now += 3.0
    for _ in range(9):
        now = max(now, link.arrival(link.sendable(5.0), MB))
    assert now == pytest.approx(5.1 + delay + 3.0 + 0.9 - stall)


def test_an_unhindered_stream_runs_at_full_rate() -> None:
    now = 5.0
    link = Link(SLOW, clock=lambda: now)
    for _ in range(10):
        now = max(now, link.arrival(link.sendable(5.0), MB))
        now += 0.005  # gRPC takes its time, less than the link
    assert now == pytest.approx(5.0 + 1.0 + 0.03 + 0.005)


def test_threads_share_a_link() -> None:
    link = Link(Network(bandwidth_mbps=8, rtt_ms=0))
    with futures.ThreadPoolExecutor(4) as pool:
        arrivals = list(pool.map(lambda _: link.arrival(0.0, 1000), range(1000)))
    assert sorted(arrivals) == pytest.approx([0.001 * (k + 1) for k in range(1000)])


# Real links ---------------------------------------------------------------------------------------


@contextmanager
def pair(profile: Network) -> Iterator[tuple[LinkChannel, LinkChannel]]:
    """Both ends of one job on a link over a real socket."""
    ends = [PeerLink(f"party{i}", f"party{1 - i}", network=profile, message_timeout=30) for i in (0, 1)]
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handler = grpc.stream_stream_rpc_method_handler(
        LinkService(ends[0]).Exchange,
        unsealing(EXCHANGE, "request", Frame.FromString),
        sealing(EXCHANGE, "reply", Frame.SerializeToString),
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ditto.v1.PeerLink", {"Exchange": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        coders = (
            sealing(EXCHANGE, "request", Frame.SerializeToString),
            unsealing(EXCHANGE, "reply", Frame.FromString),
        )
        ends[1].dial(cast(Any, SimpleNamespace(Exchange=channel.stream_stream(EXCHANGE, *coders))))
        try:
            channels = ends[1].open("job"), ends[0].open("job")
            _together(lambda c: c.exchange("warm", b""), channels)
            yield channels
        finally:
            for end in ends:
                end.stop()
            server.stop(None)


def _together(work: Callable[[LinkChannel], object], channels: tuple[LinkChannel, LinkChannel]) -> float:
    """Seconds until both parties have done `work`."""
    began = time.monotonic()
    with futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, channel) for channel in channels]:
            done.result(60)
    return time.monotonic() - began


def test_small_rounds_cost_half_a_round_trip_each() -> None:
    """Both parties send at once and wait for each other, so that a round is one way."""
    with pair(Network(bandwidth_mbps=400, rtt_ms=40)) as channels:
        assert channels[0]._link.fastest == 0  # nothing large came: nothing is known
        seconds = _together(lambda c: [c.exchange("r", b"x") for _ in range(20)], channels)
    assert 0.95 * 20 * 0.02 <= seconds < 1.5 * 20 * 0.02


def test_question_and_answer_cost_a_round_trip() -> None:
    with pair(Network(bandwidth_mbps=400, rtt_ms=40)) as (one, zero):

        def echo() -> None:
            for i in range(1, 11):
                zero._link.send("job", i, "a", zero._link.receive(zero._box, i, "a")[0])

        threading.Thread(target=echo, daemon=True).start()
        began = time.monotonic()
        for i in range(1, 11):
            one._link.send("job", i, "q", b"x")
            one._link.receive(one._box, i, "a")
        seconds = time.monotonic() - began
    assert 0.95 * 10 * 0.04 <= seconds < 1.5 * 10 * 0.04


def test_a_large_payload_costs_its_bytes_and_one_way_in_both_directions_at_once() -> None:
    """Chunks of 1 MB pay the way once, and what flows back takes nothing away."""
    payload = bytes(6 * MB)
    want = 8 * len(payload) / 80e6 + 0.03
    with pair(SLOW) as channels:
        both = _together(lambda c: c.exchange("large", payload), channels)
        one_way = _together(lambda c: c.exchange("one", payload if c is channels[0] else b""), channels)
        assert all(5e6 < channel._link.fastest < 20e6 for channel in channels)  # 10 MB/s; twice as much either way
    assert 0.95 * want <= one_way < 1.35 * want
    assert 0.95 * want <= both < 1.35 * want


def test_two_small_messages_behind_each_other_do_not_wait_for_the_first_to_arrive() -> None:
    with pair(Network(rtt_ms=400)) as (one, zero):
        began = time.monotonic()
        for i in range(1, 6):
            one._link.send("job", i, "m", b"x")
        for i in range(1, 6):
            zero._link.receive(zero._box, i, "a")
        assert 0.19 <= time.monotonic() - began < 0.35


# The cluster --------------------------------------------------------------------------------------


def test_configure_writes_the_network_and_keeps_the_rest(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports(), threads=2, network=network("wan"))
    assert load_config(cluster.config_path("party1"), PartyConfig).network == network("wan")
    assert load_config(cluster.config_path("dealer"), DealerConfig).network == network("wan")
    assert network_of(cluster.client_config()) == "wan"
    before = {role: yaml.safe_load(cluster.config_path(role).read_text()) for role in SHAPED}
    cluster.configure()
    cluster.configure(network=network("lan"))
    for role in SHAPED:
        after = yaml.safe_load(cluster.config_path(role).read_text())
        assert after.pop("network") == network("lan").model_dump()
        before[role].pop("network")
        assert after == before[role]
    assert "network" not in yaml.safe_load(cluster.config_path("coordinator").read_text())


def test_a_configuration_with_a_bad_network_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure()
    path = cluster.config_path("party0")
    path.write_text(path.read_text() + "network: {bandwidth_mbps: 0, rtt_ms: 1}\n")
    with pytest.raises(ConfigError, match=r"network\.bandwidth_mbps"):
        load_config(path, PartyConfig)


def test_an_inference_pays_for_its_rounds_and_its_bytes() -> None:
    profile = Network(name="slow", bandwidth_mbps=40, rtt_ms=20)
    description, weights, _ = random_model("bert-tiny", 1, 16)
    with embedded(network=profile) as cluster, Client(cluster.client_config()) as client:
        client.share_model(description, weights)
        began = time.monotonic()
        result = client.infer(description.name, lambda p: encode_inputs(description, p, random_batch(1, 16)), 1, 16)
        wall = time.monotonic() - began
        with pytest.raises(ClusterError, match="dealer, party0, party1"):
            cluster.configure(network=network("wan"))
        cluster.configure(network=profile)
    online, offline = result.report["online"], result.report["offline"]
    want = online["rounds"] * 0.01 + 8 * max(online["bytes_sent"]) / 40e6
    assert 0.95 * want <= online["seconds"] < 1.5 * want + 0.5
    assert wall >= 0.95 * 8 * max(offline["bytes_to_party"]) / 40e6

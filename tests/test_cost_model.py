"""The cost model's predictions from a report: the closed form, both ways, with and without overlap."""

from __future__ import annotations

from typing import Any

import pytest

from ditto.net.emulation import Network, network, networks
from ditto.report.cost_model import predict, predict_all, predict_run, same

LOOPBACK = network("loopback")
SLOW = Network(name="slow", bandwidth_mbps=80, rtt_ms=60)  # 10 MB and 33 rounds a second
MB = 1_000_000


def account(seconds: float, rounds: int, sent: list[int], offline: float, dealt: list[int]) -> dict[str, Any]:
    return {
        "online": {"seconds": seconds, "rounds": rounds, "bytes_sent": sent},
        "offline": {"seconds": offline, "bytes_to_party": dealt},
    }


def report() -> dict[str, Any]:
    """Two layers: one that waits for the dealer on the slow network, and one that computes there too."""
    layers = [
        {"name": "first", **account(0.5, 10, [2 * MB, 1 * MB], 0.2, [8 * MB, 20 * MB])},
        {"name": "second", **account(1.5, 30, [3 * MB, 3 * MB], 3.0, [10 * MB, 0])},
    ]
    return {**account(2.0, 40, [5 * MB, 4 * MB], 3.2, [18 * MB, 20 * MB]), "layers": layers}


def test_a_round_is_one_way_and_the_larger_direction_counts() -> None:
    got = predict(account(0.5, 10, [2 * MB, 1 * MB], 0.2, [8 * MB, 20 * MB]), LOOPBACK, SLOW)
    assert got.compute == pytest.approx(0.5)
    assert got.latency == pytest.approx(10 * 0.03)
    assert got.transfer == pytest.approx(2 * 8 / 80)
    assert got.online == pytest.approx(0.5 + 0.3 + 0.2)
    assert got.offline == pytest.approx(20 * 8 / 80)


def test_offline_is_no_less_than_it_took() -> None:
    assert predict(account(0.5, 10, [0, 0], 3.0, [8 * MB, 0]), LOOPBACK, SLOW).offline == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["lan", "wan", "puma", "sigma-lan", "sigma-wan"])
def test_there_and_back(name: str) -> None:
    """What loopback predicts for a network predicts loopback again, and anything else the same as loopback does."""
    there = network(name)
    first = predict(report(), LOOPBACK, there)
    moved = report()
    moved["online"]["seconds"] = first.online
    assert predict(moved, there, LOOPBACK).online == pytest.approx(2.0)
    assert predict(moved, there, SLOW).online == pytest.approx(predict(report(), LOOPBACK, SLOW).online)


def test_the_own_network_is_measured() -> None:
    """A profile of the same figures is the same network, and nothing about it is predicted."""
    twin = Network(name="twin", bandwidth_mbps=80, rtt_ms=60)
    assert same(SLOW, twin) and not same(SLOW, LOOPBACK)
    got = predict_run(report(), SLOW, twin)
    assert got.measured
    assert (got.total.online, got.total.offline) == pytest.approx((2.0, 3.2))
    assert (got.overlapped, got.sequential) == pytest.approx((5.2, 5.2))


def test_time_is_not_negative() -> None:
    """A link that beat the formula by a little leaves no compute, not less than none."""
    got = predict(account(0.1, 10, [MB, MB], 0.0, [0, 0]), SLOW, LOOPBACK)
    assert got.compute == got.online == 0


def test_a_run_and_its_layers() -> None:
    got = predict_run(report(), LOOPBACK, SLOW)
    assert [name for name, _ in got.layers] == ["first", "second"]
    assert sum(layer.online for _, layer in got.layers) == pytest.approx(got.total.online)
    assert got.total.online == pytest.approx(2.0 + 40 * 0.03 + 5 * 8 / 80)
    assert [layer.offline for _, layer in got.layers] == pytest.approx([2.0, 3.0])
    assert got.total.offline == pytest.approx(5.0)
    assert got.overlapped == pytest.approx(3.7 + 3.2)
    assert got.sequential == pytest.approx(3.7 + 5.0)


def test_no_run_is_faster_than_the_dealers_link() -> None:
    slower = Network(name="slower", bandwidth_mbps=8, rtt_ms=0)
    got = predict_run(report(), LOOPBACK, slower)
    assert got.overlapped == pytest.approx(20.0)  # 20 MB at 1 MB a second; online and computing, 10.2 s, fit into it
    assert got.sequential == pytest.approx(2.0 + 5.0 + 20.0 + 10.0)


def test_a_report_from_a_slow_network_promises_no_offline_compute() -> None:
    """Its offline seconds may be waiting, so the overlapped time on a faster network leaves them out."""
    got = predict_run(report(), SLOW, LOOPBACK)
    assert got.overlapped == pytest.approx(got.total.online) == pytest.approx(2.0 - 1.2 - 0.5)
    assert got.sequential == pytest.approx(got.total.online + 3.2)


def test_a_report_without_layers() -> None:
    got = predict_run(report() | {"layers": []}, LOOPBACK, SLOW)
    assert got.total.offline == pytest.approx(max(3.2, 2.0))


def test_every_profile_fastest_first() -> None:
    runs = predict_all(report(), LOOPBACK)
    assert sorted(run.network.name for run in runs) == networks()
    assert [run.network.name for run in runs if run.measured] == ["loopback"]
    assert [run.total.online for run in runs] == sorted(run.total.online for run in runs)
    assert all(run.overlapped <= run.sequential + 1e-9 for run in runs)

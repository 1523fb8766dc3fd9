"""The pure parts of benchmarks/namespaces.py; the rest needs root and a script that makes namespaces."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> tuple[ModuleType, ModuleType]:
    """(lab, namespaces), imported as they import each other when the script runs."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("lab"), importlib.import_module("namespaces")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_round_trips_of_ping(modules: tuple[ModuleType, ModuleType]) -> None:
    text = """PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data.
64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=40.6 ms
64 bytes from 10.77.0.2: icmp_seq=2 ttl=64 time=0.385 ms

2 packets transmitted, 2 received, 0% packet loss, time 1002ms
rtt min/avg/max/mdev = 0.385/20.493/40.600/20.108 ms
"""
    assert modules[0].round_trips(text) == [40.6, 0.385]


def test_who_calls_whom_where(modules: tuple[ModuleType, ModuleType]) -> None:
    """Servers call each other over the shaped links, client and coordinator call them over the others."""
    addresses = modules[1].addresses
    assert addresses("party1") == {
        "party0": "10.77.0.1:50051",
        "party1": "10.77.0.2:50052",
        "dealer": "10.77.0.3:50053",
    }
    assert addresses("client") == addresses("coordinator")
    assert addresses("client")["dealer"] == "198.18.77.10:50053"
    assert not {a.split(":")[0] for a in addresses("client").values()} & set(modules[0].SHAPED.values())


def test_medians_and_their_ratio(modules: tuple[ModuleType, ModuleType]) -> None:
    _, namespaces = modules

    def runs(*seconds: float) -> list[dict[str, float]]:
        return [{"online": s, "offline": 2 * s, "wall": 4 * s} for s in seconds]

    found = namespaces.compare({"namespaces": runs(1.0, 9.0, 2.0), "built-in": runs(3.0, 2.5, 2.0)})
    assert found["namespaces"]["wall"] == {"median": 8.0, "min": 4.0, "max": 36.0}
    assert found["ratio"] == pytest.approx({name: 1.25 for name in namespaces.FIGURES})
    rows = namespaces.table([{"network": "wan", "seconds": found}]).splitlines()
    assert rows[2] == "| wan | online | 2.00 (1.00 to 9.00) | 2.50 (2.00 to 3.00) | 1.250 |"
    assert len(rows) == 2 + 3


def test_what_is_missing_is_said(modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    lab, namespaces = modules
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(lab.shutil, "which", lambda tool: None)
    lacks = "; ".join(lab.missing(None))
    assert all(word in lacks for word in ("root", "iproute2", "iptables", "ping", "NETLAB"))
    monkeypatch.delenv("NETLAB", raising=False)
    app = namespaces.typer.Typer()
    app.command()(namespaces.main)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "this comparison needs" in result.output

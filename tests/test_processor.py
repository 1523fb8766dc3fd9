"""How many threads a server takes that is not told, and that it says so. Under 1 s."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ditto.errors import ConfigError
from ditto.net import processor
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, load_config
from ditto.net.processor import threads_here, usable_cores

MINE = "10.0.0.1:1"


@pytest.mark.parametrize(
    ("own", "computing", "cores", "threads"),
    [
        (MINE, [MINE, "10.0.0.2:1", "10.0.0.3:1"], 16, 16),  # alone on its machine
        (MINE, [MINE, "10.0.0.1:2", "10.0.0.3:1"], 16, 8),
        ("127.0.0.1:1", ["localhost:1", "127.0.0.1:2", "[::1]:3"], 16, 5),  # one machine by three names
        ("127.0.0.1:1", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"], 2, 1),  # never none
        ("Party0:1", ["party0:1", "party1:1", "dealer:1"], 6, 6),
    ],
)
def test_a_share_of_the_machine(own: str, computing: list[str], cores: int, threads: int) -> None:
    assert threads_here(own, computing, cores) == threads


def group(root: Path, path: str, **limits: str) -> None:
    place = root / "sys/fs/cgroup" / path
    place.mkdir(parents=True, exist_ok=True)
    for name, text in limits.items():
        (place / name.replace("cpu_", "cpu.")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("own", "above", "cores"),
    [
        (None, None, 8),
        ("max 100000", "max 100000", 8),
        ("250000 100000", "max 100000", 2),  # two and a half
        ("max 100000", "300000 100000", 3),  # of the group around it
        ("50000 100000", None, 1),
        ("1600000 100000", None, 8),  # more than there are
        ("0 0", None, 8),
        ("nonsense", "a b c", 8),
    ],
)
def test_no_more_cores_than_a_control_group_gives(
    own: str | None, above: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pods/server\n")
    for path, limit in {"pods": above, "pods/server": own}.items():
        if limit is not None:
            group(tmp_path, path, cpu_max=limit)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("400000", 4)])
def test_control_groups_of_the_first_version(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpuset:/other\n1:cpu,cpuacct:/server\n")
    group(tmp_path, "cpu/server", **{"cpu_cfs_quota_us": quota, "cpu_cfs_period_us": "100000"})
    group(tmp_path, "cpu/other", **{"cpu_cfs_quota_us": "100000", "cpu_cfs_period_us": "100000"})
    assert usable_cores(tmp_path) == cores


def test_no_more_cores_than_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_cores(tmp_path) == 1


KINDS: dict[str, Any] = {"party0": PartyConfig, "dealer": DealerConfig, "coordinator": CoordinatorConfig}


def configured(role: str, threads: object, place: Path) -> int:
    tls = dict.fromkeys(("ca", "cert", "key"), "x")
    peers = {"party0": "a:1", "party1": "a:2", "dealer": "b:1", "coordinator": "a:3"}
    config = {"role": role, "listen": "a:1", "data_dir": "d", "tls": tls, "threads": threads, "peers": peers}
    path = place / f"{role}.yaml"
    path.write_text(yaml.safe_dump(config))
    found: int = load_config(path, KINDS[role]).thread_count
    return found


def test_as_a_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: 12)
    assert configured("party0", 3, tmp_path) == 3
    assert configured("party0", "auto", tmp_path) == 6  # beside the other party
    assert configured("dealer", "auto", tmp_path) == 12
    assert configured("coordinator", "auto", tmp_path) == 1  # it multiplies nothing
    for wrong in (0, "many", -1, 1025):
        with pytest.raises(ConfigError, match=r"yaml: threads: Input should be"):
            configured("party0", wrong, tmp_path)

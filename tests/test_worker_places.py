"""Where workers are and which pair of them a job gets: configurations and turns, without a process. Under 3 s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ditto.client.local_cluster import Cluster, _free_ports
from ditto.client.together import names, role_of
from ditto.errors import ConfigError
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, load_config
from ditto.service.turns import PASSES, Need, Turns

KINDS: dict[str, Any] = {"dealer": DealerConfig, "coordinator": CoordinatorConfig}


# Configurations ----------------------------------------------------------------------------------


def test_configurations_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = {"ca": "a", "cert": "b", "key": "c"}

    def read(**more: Any) -> PartyConfig:
        text = yaml.safe_dump({"role": "party1", "listen": "a:1", "data_dir": "d", "tls": tls} | more)
        (tmp_path / "c.yaml").write_text(text)
        return load_config(tmp_path / "c.yaml", PartyConfig)

    two = {"party0": ["a:1", "b:1"], "party1": ["c:1", "d:1"]}
    assert read().keeper_address == "127.0.0.1:50052" and read(peers={"party0": "x:1"}).peers.of("party0") == "x:1"
    monkeypatch.setenv("DITTO_WORKER", "1")
    found = read(worker="$DITTO_WORKER", peers=two)
    assert (found.worker, found.keeper_address, found.peers.of("party0", found.worker)) == (1, "c:1", "b:1")
    assert read(worker=1, peers=two, keeper="k:1").keeper_address == "k:1"
    monkeypatch.setenv("DITTO_WORKER", "")
    assert read(worker="$DITTO_WORKER", peers=two).worker == 0
    for wrong, said in (
        ({"worker": 2, "peers": two}, "worker: 2, and peers names 2 of party1"),
        ({"worker": -1}, "worker"),
        ({"worker": "$NOT_THERE"}, "worker: Input should be a valid integer"),
        ({"peers": {"party0": ["a:1", "b:1"]}}, "workers go in pairs; here are 2 of party0 and 1 of party1"),
        ({"peers": {"party0": []}}, "peers.party0"),
        ({"peers": {"party0": ["a"]}}, "peers.party0.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(**wrong)


def test_the_number_of_workers_is_changed_between_two_runs(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports(3), threads="auto", record=2)
    assert [p.role for p in cluster.status()] == ["dealer", "party0", "party1", "coordinator"]
    cluster.configure(workers=3)
    cluster.configure(workers=None, threads=4)
    assert [p.role for p in cluster.status()] == [*names(3)]
    seen = set()
    for name in names(3):
        role, worker = role_of(name)
        config = load_config(cluster.config_path(name), KINDS.get(role, PartyConfig))
        assert config.role == role and config.number == worker and config.listen == config.peers.of(role, worker)
        assert len(config.peers.workers("party0")) == 3
        seen |= {config.data_dir, config.storage_key}
        assert getattr(config, "record", 2) == 2
    assert len(seen) == 2 * len(names(3))
    cluster.configure(workers=1)
    assert [p.role for p in cluster.status()] == ["dealer", "party0", "party1", "coordinator"]
    assert cluster.client_config().peers.workers("party1") == (cluster.client_config().peers.of("party1"),)


# Turns: no process takes part ----------------------------------------------------------------------


def test_turns_go_to_the_pair_that_runs_fewest() -> None:
    up = [0, 1]
    line = Turns(2, 100, 99, pairs=lambda: tuple(up))
    for name in "abcde":
        line.enter(name, name)
    assert [line.place(name) for name in "abcde"] == [0, 0, 0, 0, 1]
    assert [line.pair(name) for name in "abcd"] == [0, 1, 0, 1]
    line.leave("b")
    assert line.pair("e") == 1
    # one that is not up gets nothing, and keeps what runs there
    up.remove(1)
    for name in "fgh":
        line.enter(name, name)
    line.leave("d")
    line.leave("e")
    assert line.state().running == ("a", "c") and line.place("f") == 1
    up.append(1)
    line.look()
    assert [line.pair(name) for name in "fg"] == [1, 1] and line.place("h") == 1


def test_memory_counts_by_pair_and_the_dealers_for_all() -> None:
    line = Turns(9, 10, 99, pairs=lambda: (0, 1))
    line.enter("a", "a", Need(8, 1, 3))
    line.enter("b", "b", Need(8, 1, 3))
    line.enter("c", "c", Need(4, 1, 3))  # the third party is not there
    line.enter("d", "d", Need(2, 1, 3))
    line.enter("e", "e", Need(2, 1, 3))  # beyond the dealer
    assert line.state().running == ("a", "b", "d") and line.pair("a") != line.pair("b")
    line.leave("a")
    assert line.pair("c") == 0 and line.place("e") == 1


def test_who_stood_aside_comes_back_to_its_pair() -> None:
    """And while it waits for a slot there, the other pair takes others, however many."""
    line = Turns(1, 100, 99, pairs=lambda: (0, 1))
    for name in ("a", "b", "c", "d0"):
        line.enter(name, name)
    assert line.step_aside("a")
    assert (line.pair("b"), line.pair("c")) == (1, 0)
    line.come_back("a")
    for number in range(2 * PASSES):
        line.enter(f"d{number + 1}", f"d{number + 1}")
        line.leave("b" if number == 0 else f"d{number - 1}")
        assert line.pair(f"d{number}") == 1 and line.place("a") == 1
    line.leave("c")
    assert line.place("a") == 0 and line.pair("a") == 0


def test_activations_are_the_keepers() -> None:
    line = Turns(1, 100, 99, pairs=lambda: (1,))
    line.enter("a", "a", alone=True)
    line.enter("b", "b", alone=True)
    line.enter("j", "j")
    assert (line.pair("a"), line.pair("j"), line.place("b")) == (0, 1, 1)
    line.leave("j")
    assert line.place("b") == 1
    line.leave("a")
    assert line.pair("b") == 0

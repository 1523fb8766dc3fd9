"""Servers that are forked from one process: known, ended and left alone as those that were started one by one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ditto.client import together
from ditto.client.local_cluster import Cluster, _free_ports, embedded
from ditto.client.together import env_of
from ditto.errors import ClusterError
from ditto.names import SERVERS
from tests.test_cluster import servers_of, sleeping, state_of

FORKS = """
import json, os, random, secrets, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric import ec
from parties import together

def serve():
    key = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
    drawn = [random.random(), secrets.token_hex(), str(key)]
    print(json.dumps({"pid": os.getpid(), "session": os.getsid(0), "argv": sys.argv[1:], "drawn": drawn,
                      "command": open("/proc/self/cmdline").read(), "stdin": os.read(0, 1).decode(),
                      "threads": len(os.listdir("/proc/self/task")),
                      "too_long": together.rename(["python", "x" * 9999])}), flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "serving":
        signal.pause()
    return 3

together.MAINS["parties.party"] = serve
root, *words = sys.argv[1:]
sys.exit(together.run(Path(root), [together.Server(*words[i : i + 3]) for i in range(0, len(words), 3)]))
"""


def forked(go: bytes, *names: str, cwd: Path) -> tuple[int, str]:
    """The exit code, and what was said, of the process that forks a server of each name. With `go` whoever started it
    stays until all servers said what they are."""
    words = [word for name in names for word in ("parties.party", name, str(cwd / f"{name}.log"))]
    command = [sys.executable, "-c", FORKS, str(cwd), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env_of(1)) as done:
        assert done.stdin is not None and done.stdout is not None
        done.stdin.write(go)
        if not go:
            done.stdin.close()
        said = done.stdout.read().decode()
        if "serving" in names:
            done.stdin.close()
        return done.wait(60), said


def test_what_a_server_is_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread count for all libraries, and the last word on malloc's free chunks, beside what the user says."""
    for said, want in (("", ""), ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1:")):
        monkeypatch.setenv("GLIBC_TUNABLES", said)
        found = env_of(2)
        assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
        assert found["GLIBC_TUNABLES"] == want + "glibc.malloc.tcache_count=0"
        assert found["PATH"] == os.environ["PATH"]


def test_a_fork_has_everything_of_its_own(tmp_path: Path) -> None:
    code, said = forked(b"\n", "one", "two", "killed", cwd=tmp_path)
    assert code == 0
    drawn = set[str]()
    for line, name in zip(sorted(said.splitlines()), ("killed", "one", "two"), strict=True):
        text, how = (tmp_path / f"{name}.log").read_text().splitlines()
        found = json.loads(text)
        assert line == f"{name} {found['pid']}" and found["session"] == found["pid"]
        assert found["argv"] == [name] and found["stdin"] == "" and found["threads"] == 1
        assert found["too_long"] is False
        first, *rest = filter(None, found["command"].split("\0"))
        assert first == sys.executable and rest == ["-m", "parties.party", name]
        assert how == ("ended by signal 9" if name == "killed" else "ended by exit code 3")
        drawn |= set(map(str, found["drawn"]))
    assert len(drawn) == 9


def test_nobody_is_forked_unasked(tmp_path: Path) -> None:
    """The client's end is the end of its standard input."""
    assert forked(b"", "one", cwd=tmp_path) == (0, "")
    assert not (tmp_path / "one.log").exists()


def test_servers_end_with_who_started_them(tmp_path: Path) -> None:
    """However that ended: the pipe does in any case. What has ended before is not signalled."""
    root = tmp_path / "root"
    root.mkdir()
    code, said = forked(b"\n", "serving", "one", cwd=root)
    pids = [int(line.split()[1]) for line in said.splitlines()]
    assert code == 0 and len(pids) == 2 and not any(map(psutil.pid_exists, pids))
    assert not root.exists() and not left_of(root)


# A cluster ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with embedded() as cluster:
        yield cluster
        assert set(cluster.down()) == set(SERVERS)
        root = cluster.root
    assert not root.exists() and not left_of(root)


def left_of(root: Path) -> list[int]:
    """Every process whose command line names something in this directory."""
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if any(str(root) in word for word in p.info["cmdline"] or [])]


def forker(cluster: Cluster) -> psutil.Process:
    """The process that forked the servers."""
    return next(p for p in psutil.Process().children() if str(cluster.root) in " ".join(p.cmdline()))


def test_a_killed_server_ends_alone_and_comes_back_alone(cluster: Cluster) -> None:
    before = {p.role: p.pid for p in cluster.status()}
    assert sorted(servers_of(cluster)) == sorted(p for p in before.values() if p)
    assert {psutil.Process(pid).ppid() for pid in before.values()} == {forker(cluster).pid}
    killed = psutil.Process(before["party1"])
    killed.kill()
    killed.wait(10)
    assert {p.role: p.state for p in cluster.status()} == dict.fromkeys(SERVERS, "serving") | {"party1": "stopped"}
    log = cluster.logs / "party1.log"
    deadline = time.monotonic() + 10
    while "ended by signal 9" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "ended by signal 9" in log.read_text()
    after = {p.role: p.pid for p in cluster.up()}
    assert after.pop("party1") != before.pop("party1") and after == before


def test_neither_a_stranger_nor_the_forker_is_signalled(cluster: Cluster) -> None:
    """An id on record that another process has by now."""
    state = state_of(cluster)
    with sleeping() as stranger:
        others = {"dealer": {"pid": stranger}, "party0": {"pid": forker(cluster).pid}}
        (cluster.root / "cluster.json").write_text(json.dumps(others))
        assert cluster.unconfirmed() == {role: entry["pid"] for role, entry in others.items()}
        assert cluster.down() == []
    (cluster.root / "cluster.json").write_text(json.dumps(state))
    assert [p.state for p in cluster.status()] == ["serving"] * 4


def test_servers_outlive_what_forked_them(cluster: Cluster) -> None:
    before, first = state_of(cluster), forker(cluster)
    first.kill()
    first.wait(10)
    assert [p.state for p in cluster.up()] == ["serving"] * 4 and state_of(cluster) == before


def test_two_clusters_at_once() -> None:
    def roots(_: int) -> tuple[Path, list[int]]:
        with embedded() as cluster:
            assert [p.state for p in cluster.status()] == ["serving"] * 4
            return cluster.root, servers_of(cluster)

    with ThreadPoolExecutor(2) as pool:
        (one, pids), (two, others) = pool.map(roots, range(2))
    assert one != two and len({*pids, *others}) == 8
    assert not left_of(one) and not left_of(two) and not one.exists() and not two.exists()


# Starts that come to nothing ---------------------------------------------------------------------


def test_interrupted_before_and_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path)
    with pytest.raises(KeyboardInterrupt), together.Together(tmp_path, 1):
        raise KeyboardInterrupt
    assert not left_of(tmp_path)
    cluster.configure(ports=_free_ports())
    hear = together.Together._hear

    def interrupted(process: together.Together, timeout: float) -> None:
        monkeypatch.setattr(together.Together, "_hear", hear)
        while not servers_of(cluster):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(together.Together, "_hear", interrupted)
    with pytest.raises(KeyboardInterrupt), together.Together(tmp_path, 1) as servers:
        cluster.up(together=servers)
    known = {entry["pid"] for entry in state_of(cluster).values()}
    assert known and known == set(servers_of(cluster))
    assert len(cluster.down()) == len(known) and not left_of(tmp_path)


def test_what_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MODULE", "parties.absent")
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports())
    with (
        pytest.raises(ClusterError, match=r"could not be started[\s\S]*parties\.absent"),
        together.Together(tmp_path, 1) as servers,
    ):
        cluster.up(together=servers)
    assert not left_of(tmp_path)


def test_one_that_does_not_start_ends_the_others(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(ports=_free_ports())
    path = cluster.config_path("coordinator")
    path.write_text(path.read_text() + "nonsense: 1\n")
    with (
        pytest.raises(ClusterError, match=r"coordinator stopped[\s\S]*nonsense"),
        together.Together(tmp_path, 1) as servers,
    ):
        cluster.up(together=servers)
    assert not left_of(tmp_path) and not (tmp_path / "cluster.json").exists()

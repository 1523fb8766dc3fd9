"""Servers of this machine, forked from one process that loads their programs once (`parties.together`).

This module loads next to nothing, so that the process is under way while its client loads the rest.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ditto.names import PARTIES, SERVERS, server_name

MODULE = "parties.together"
MODULES = {"dealer": "parties.dealer", "coordinator": "parties.coordinator"} | dict.fromkeys(PARTIES, "parties.party")
CONFIGS, LOGS = "configs", "logs"  # directories of a cluster


def names(workers: int = 1) -> tuple[str, ...]:
    """The servers of a cluster, in the order of their start: by role, and from the second worker of a party on with its
    number, as party0-1."""
    more = [server_name(role, worker) for worker in range(1, workers) for role in PARTIES]
    return (*SERVERS[:-1], *more, SERVERS[-1])


def role_of(name: str) -> tuple[str, int]:
    """And which worker of it."""
    role, _, worker = name.partition("-")
    return role, int(worker or 0)


def command(role: str, config: Path) -> list[str]:
    """What starts a server; its own process, no shell or parent that stays in between. The last three words are how the
    process is known again."""
    return [sys.executable, "-m", MODULES[role_of(role)[0]], str(config.resolve())]


def env_of(threads: int | str) -> dict[str, str]:
    """Of a server's process: its own thread count, for OpenMP would take every core for each, and no free chunks that
    malloc keeps for single threads: they lie between large tensors, which then grow the heap where there was room."""
    tunables = [*filter(None, [os.environ.get("GLIBC_TUNABLES")]), "glibc.malloc.tcache_count=0"]
    threads = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "GLIBC_TUNABLES": ":".join(tunables),
    }  # fmt: skip


class Together:
    """The process that forks the servers: it starts at once, and forks when told.

    A context manager. A server that it forked is not ended by the end of the block: whoever stops it does so within.
    Should this process be killed, it stops them and removes `root`.
    """

    def __init__(self, root: Path, threads: int, workers: int = 1) -> None:
        """Of the cluster in `root`, whose configurations need not be there yet. `threads`: of each server, `workers` of
        each party."""
        self.pids: dict[str, int] = {}  # by role, of what was forked
        logs = root / LOGS
        logs.mkdir(exist_ok=True)
        commands = {role: command(role, root / CONFIGS / f"{role}.yaml") for role in names(workers)}
        self._roles = {words[-1]: role for role, words in commands.items()}
        self._said = b""
        words = [word for role, its in commands.items() for word in (*its[-2:], str(logs / f"{role}.log"))]
        with (logs / "together.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(root), *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env=env_of(threads), bufsize=0,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with self._process:  # closes the pipes and waits
            pass

    def fork(self, timeout: float) -> bool:
        """Fork every server, once; `pids` has them, whatever is raised. Returns whether all were, within `timeout`
        seconds."""
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b"\n")
            self._hear(timeout)
        finally:
            if len(self.pids) < len(self._roles):
                self._process.kill()
                self._hear(timeout)  # who was forked says so even then
        return len(self.pids) == len(self._roles)

    def _hear(self, timeout: float) -> None:
        """Until the last one that can say something has said it."""
        assert self._process.stdout is not None
        said, deadline = select.poll(), time.monotonic() + timeout
        said.register(self._process.stdout, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and said.poll(1000 * left):
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                break
            self._said += more
        for line in self._said.decode().splitlines():
            config, pid = line.rsplit(" ", 1)
            self.pids[self._roles[config]] = int(pid)


class Place(NamedTuple):
    root: Path
    together: Together
    threads: int
    workers: int = 1


@contextlib.contextmanager
def starting(threads: int, workers: int = 1) -> Iterator[Place]:
    """A temporary directory, gone when the block ends, and what will fork the servers of a cluster in it."""
    root = Path(tempfile.mkdtemp(prefix="ditto-"))
    try:
        with Together(root, threads, workers) as together:
            yield Place(root, together, threads, workers)
    finally:
        shutil.rmtree(root, ignore_errors=True)

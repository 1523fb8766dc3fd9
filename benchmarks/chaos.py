"""What may happen to a process, its clock and its disk; and the repair, as an operator would do it: `cluster up` again.

A full disk is a small tmpfs over a server's data directory, filled up; where mounting is not allowed, a limit on the
size of that process's files, which its log meets as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.servers import Watched
from ditto.names import SERVERS

# What can happen, and how often each, beyond the first time.
KINDS = {"kill": 5, "pause": 3, "client": 2, "clock": 2, "disk": 2, "freeze, kill": 2, "freeze": 2, "kill two": 1}
FROZEN_S = 9.0  # longer than the keepalive: the others have noticed after about 7
JUMPS_S = (-3600.0, 90.0, 7200.0, 30 * 86400.0)
DISK_MB = 16


class Fault(NamedTuple):
    """Something that happens to `targets`, `delay` seconds after job `after` began."""

    after: int
    delay: float
    kind: str
    targets: tuple[str, ...]  # roles; of a client's, its number
    seconds: float  # how long it lasts, or how far a clock jumps


def plan(draws: random.Random, jobs: int, count: int, clients: int) -> list[Fault]:
    """One of each kind, then more of them, at random moments."""
    kinds = list(KINDS)[:count]
    kinds += draws.choices(list(KINDS), list(KINDS.values()), k=count - len(kinds))
    draws.shuffle(kinds)
    faults = []
    for after, kind in zip(sorted(draws.choices(range(jobs), k=count)), kinds, strict=True):
        roles = draws.sample(SERVERS, 2 if kind == "kill two" else 1)
        targets = (str(draws.randrange(clients)),) if kind == "client" else tuple(roles)
        lasts = {"pause": draws.uniform(0.5, 4), "freeze": FROZEN_S, "freeze, kill": draws.uniform(0.5, FROZEN_S)}
        seconds = draws.choice(JUMPS_S) if kind == "clock" else lasts.get(kind, 0.0)
        faults.append(Fault(after, round(draws.uniform(0, 0.8), 3), kind, targets, round(seconds, 3)))
    return faults


class Chaos:
    """Does one thing at a time to a cluster, and repairs it."""

    def __init__(self, cluster: Watched, disks: str, kill_client: Callable[[int], None]) -> None:
        self._cluster, self._disks, self._kill_client = cluster, disks, kill_client

    def happen(self, fault: Fault, over: Callable[[], bool]) -> None:
        """Returns when every server serves again. A full disk has room again once `over` says so."""
        if fault.kind == "client":
            self._kill_client(int(fault.targets[0]))
        elif fault.kind == "clock":
            self._cluster.move_clock(fault.targets[0], fault.seconds)
        elif fault.kind == "disk":
            with self._full(fault.targets[0]):
                deadline = time.monotonic() + 20
                while not over() and time.monotonic() < deadline:
                    time.sleep(0.05)
        else:
            self._signal(fault)
        self._cluster.up(180)  # a busy machine

    def again(self) -> None:
        """All servers anew, after a note of where those are that did not serve."""
        for process in self._cluster.status():
            if process.pid and process.state != "serving":
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1)
        self._cluster.down()
        self._cluster.up(180)

    def _signal(self, fault: Fault) -> None:
        processes = [psutil.Process(self._cluster.pid(role)) for role in fault.targets]
        if fault.kind not in ("kill", "kill two"):
            processes[0].send_signal(signal.SIGSTOP)
            time.sleep(fault.seconds)
        for process in processes:
            process.send_signal(signal.SIGKILL if "kill" in fault.kind else signal.SIGCONT)
        if "kill" in fault.kind:
            psutil.wait_procs(processes, timeout=10)

    @contextlib.contextmanager
    def _full(self, role: str) -> Iterator[None]:
        if self._disks == "tmpfs":
            ballast = self._cluster.root / "data" / role / "ballast"
            try:
                fill(ballast)
                yield
            finally:
                ballast.unlink()
            return
        pid, (_, hard) = self._cluster.pid(role), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextlib.contextmanager
def small_disks(root: Path) -> Iterator[str]:
    """A tmpfs for each server's data, if this user may mount; says what a full disk will be. Before the first start."""
    mounted: list[Path] = []
    try:
        for role in SERVERS:
            path = root / "data" / role
            path.mkdir(mode=0o700, parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "soak", str(path)]
            if os.getuid() or subprocess.run(command, capture_output=True).returncode:
                break
            mounted.append(path)
        yield "tmpfs" if len(mounted) == len(SERVERS) else "limit on file sizes"
    finally:
        for path in mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)

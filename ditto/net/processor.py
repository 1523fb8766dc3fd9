"""The processor under this process: what it has, how much of it this process may use, what a server takes of that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# what the kernels of products can use
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_ROOT = Path("/")
_LOOPBACK = ("localhost", "[::1]")


def features() -> list[str]:
    """Those of FEATURES that the processor has (Linux); whether a library uses them is another matter."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    return [name for name in FEATURES if name in flags]


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use at a time: those that it may run on, and no more than its control groups give it
    time for, rounded down; 1 at least. `root`: where the file system begins, for tests."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """In cores: of this process's control group and of those that it is part of, where they have one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = top / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = _limit(group, bool(controllers))
                if quota > 0:
                    yield quota / period


def _limit(group: Path, first_version: bool) -> tuple[int, int]:
    """Microseconds of processor time in a period, and the period. Raises OSError or ValueError where there is none."""
    if first_version:  # -1: none
        return tuple(int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))  # type: ignore[return-value]
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota), int(period)  # "max": none


def threads_here(own: str, computing: Iterable[str], cores: int | None = None) -> int:
    """Threads of a server at the address `own` that does not want to be told: an even share of the usable cores among
    all servers at `computing` that are on its machine, rounded down; 1 at least.

    They compute at the same time. On one machine are those whose addresses have one host, loopback's names being one.
    Of others that share the machine, nothing is known: a limit on the process (affinity, control group) is what says
    so.
    """
    here = _host(own)
    count = sum(_host(address) == here for address in computing)
    return max(1, (usable_cores() if cores is None else cores) // max(1, count))


def _host(address: str) -> str:
    host = address.rsplit(":", 1)[0].lower()
    return "loopback" if host in _LOOPBACK or host.startswith("127.") else host

"""The processes that a local cluster started: their ids on disk, whose a process is, and their end.

Process ids are used again, so an id proves nothing. A process is a server of the cluster when its command line ends as
the one that starts this server of this configuration; only such a process is ever sent a signal. Start times are not
compared: they move with the clock. Between this check and the signal, psutil makes sure that the process is the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import psutil

from ditto import files
from ditto.errors import ClusterError


def read(path: Path) -> dict[str, int]:
    """Process ids by role. Raises ClusterError for a file that says nothing: servers may run that nobody knows of."""
    try:
        return {str(role): int(entry["pid"]) for role, entry in files.read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ClusterError(f"{path} cannot be read; stop the servers by hand, then remove it") from None


def write(path: Path, pids: dict[str, int]) -> None:
    """Without an entry, without a file."""
    if pids:
        files.write(path, json.dumps({role: {"pid": pid} for role, pid in pids.items()}))
    else:
        path.unlink(missing_ok=True)


def alive(pid: int | None) -> psutil.Process | None:
    """The process of this id, whosever it is."""
    if pid is None or pid <= 0:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.AccessDenied):
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        return process
    return None


def server(pid: int | None, command: list[str]) -> psutil.Process | None:
    """The process of this id, if its command line ends with `-m MODULE CONFIGURATION` as that of `command`."""
    process = alive(pid)
    if process is None:
        return None
    try:
        return process if process.cmdline()[-3:] == command[-3:] else None
    except psutil.Error:
        return None


def stop(processes: Iterable[psutil.Process], grace: float) -> list[psutil.Process]:
    """SIGTERM; after `grace` seconds SIGKILL to those that still run. Returns those that do not end."""
    left = list(processes)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.Error):
                end(process)
        _, left = psutil.wait_procs(left, timeout=grace)
    return left

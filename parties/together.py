"""`python -m parties.together ROOT (MODULE CONFIG LOG)…`: the mains of several servers, loaded once and forked.

1. Load what every server needs, and time the kernels of products, which each would do again. Nothing of that starts a
   thread, opens a connection or draws a secret.
2. Wait for a byte on standard input: the configurations are written. Without one, end: nobody wants the servers.
3. Fork a process for each. It has a session, a log and random numbers of its own, says `CONFIG PID` on what was
   standard output, and is then the server, as `python -m MODULE CONFIG` would be. The same stands in its command line.
4. Wait for the ends of the servers and note them in their logs. They live on if this process does not. Standard input
   ends with who started them, even one that was killed: they are stopped then, and ROOT, which has their keys, goes.

Where the command line cannot be changed, where there are threads before a fork, or for a module that is no main of
`parties`, the new process executes Python anew: the same server, later.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig
from ditto.ring.kernels import measure
from ditto.service.process import main
from parties import coordinator, dealer, party

STOP_S = 10.0  # that servers have to stop before they are killed
MAINS: dict[str, Callable[[], int]] = {
    "parties.coordinator": lambda: main(CoordinatorConfig, coordinator.start),
    "parties.dealer": lambda: main(DealerConfig, dealer.start),
    "parties.party": lambda: main(PartyConfig, party.start),
}


class Server(NamedTuple):
    """What to start, and where its output goes."""

    module: str
    config: str
    log: str


def run(root: Path, servers: Sequence[Server]) -> int:
    """Returns in every process: in a server with its exit code, in the first when all servers have ended. `root` is the
    cluster's directory."""
    # 1
    if torch.get_num_threads() == 1:  # else there would be threads
        measure()
    gc.collect()
    gc.freeze()  # or the first collection in a server would write to, and so copy, every page of objects
    # 2
    if not os.read(0, 1):
        return 0
    # 3
    anew = _threads() != 1
    started: dict[int, Server] = {}
    for server in servers:
        pid = os.fork()
        if pid == 0:
            return _serve(server, anew)
        started[pid] = server
    _point(1, os.devnull)
    # 4
    alone = threading.Event()
    threading.Thread(target=_stop_when_alone, args=(started, alone), daemon=True).start()
    while started:
        pid, status = os.wait()
        _note(started.pop(pid).log, os.waitstatus_to_exitcode(status))
    if alone.is_set():
        shutil.rmtree(root, ignore_errors=True)
    return 0


def _stop_when_alone(started: dict[int, Server], alone: threading.Event) -> None:
    """Once nobody holds the other end of standard input: as `cluster down` stops servers. Who left with their servers
    stopped finds none here."""
    while os.read(0, 1):
        pass
    alone.set()
    for how in (signal.SIGTERM, signal.SIGKILL):
        for pid in list(started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        until = time.monotonic() + STOP_S
        while started and time.monotonic() < until:
            time.sleep(0.1)


def _serve(server: Server, anew: bool) -> int:
    """Become a server, by executing Python `anew` if need be, and return its exit code."""
    os.setsid()
    said = os.dup(1)  # closed when another program is executed
    _point(0, os.devnull)
    _point(1, server.log)
    os.dup2(1, 2)
    command = [sys.executable, "-m", server.module, server.config]
    serve = MAINS.get(server.module)
    anew = anew or serve is None or not rename(command)
    os.write(said, f"{server.config} {os.getpid()}\n".encode())
    if anew or serve is None:
        os.execv(command[0], command)
    os.close(said)
    sys.argv[1:] = [server.config]
    return serve()


def rename(command: Sequence[str]) -> bool:
    """Whether this process is now one of this command line, for whoever looks (Linux).

    The kernel shows others the memory where it put the arguments. It is written there, after as many zeros as make it
    no shorter, and through /proc: a wrong address is an error there, and no fault.
    """
    try:
        places = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(places[45]), int(places[46])  # arg_start and arg_end, the 48th and 49th (proc_pid_stat(5))
        first, *rest = map(os.fsencode, command)
        last = b"\0" + b"\0".join(rest) + b"\0"
        whole = first.ljust(end - start - len(last), b"\0") + last
        if len(whole) != end - start:
            return False
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            if memory.read(end - start) != Path("/proc/self/cmdline").read_bytes():
                return False
            memory.seek(start)
            memory.write(whole)
        return Path("/proc/self/cmdline").read_bytes() == whole
    except (OSError, ValueError, IndexError):
        return False


def _threads() -> int:
    """Of this process; 0 where nobody says."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _point(descriptor: int, path: str) -> None:
    """Open a file, at its end, in the place of a descriptor."""
    opened = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(opened, descriptor)
    os.close(opened)


def _note(log: str, code: int) -> None:
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as out:
            out.write(f"ended by {how}\n")


if __name__ == "__main__":
    root, *words = sys.argv[1:]
    sys.exit(run(Path(root), [Server(*words[i : i + 3]) for i in range(0, len(words), 3)]))

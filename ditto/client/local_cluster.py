"""A cluster on this machine: configurations, processes, health.

The processes are started detached, with their process ids in `cluster.json`; any later `ditto` command finds them
there. `embedded()` is the same in a temporary directory on free ports, gone when the block ends.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ditto import files
from ditto.errors import CertificateError, ClusterError, DittoError
from ditto.names import PARTIES, ROLES, SERVERS
from ditto.net import certs
from ditto.net.config import DEFAULT_PORTS, ClientConfig, DealerConfig, PartyConfig, load_config
from ditto.net.emulation import Network
from ditto.net.transport import connect, open_channel

MODULES = {"dealer": "parties.dealer", "coordinator": "parties.coordinator"} | dict.fromkeys(PARTIES, "parties.party")
SHAPED = ("dealer", *PARTIES, "client")  # whose configuration names the network; the client's for reports


def home() -> Path:
    """Where this user's cluster and models live: $DITTO_HOME, else ~/.local/state/ditto."""
    return Path(os.environ.get("DITTO_HOME") or Path.home() / ".local/state/ditto")


@dataclass(frozen=True)
class Process:
    """One process of the cluster: its address, and whether it runs and answers."""

    role: str
    address: str
    pid: int | None
    state: str  # "serving", "starting" (runs, does not answer), "untrusted" (its certificate) or "stopped"

    @property
    def peak_rss(self) -> int | None:
        """Largest resident memory so far, in bytes (Linux only)."""
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        return None


class Cluster:
    """The four servers whose state lies in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.certs = self.root / "certs"
        self.configs = self.root / "configs"
        self.logs = self.root / "logs"
        self._state = self.root / "cluster.json"

    def config_path(self, role: str) -> Path:
        return self.configs / f"{role}.yaml"

    def client_config(self) -> ClientConfig:
        return load_config(self.config_path("client"), ClientConfig)

    def configure(
        self, *, ports: dict[str, int] | None = None, threads: int = 1, network: Network | None = None
    ) -> None:
        """Certificates and one configuration for each role; what stands there already is kept, ports given or not.

        Only a network, where one is given, is also written into configurations that stand there. They are not
        touched, and it is an error, if a process runs on another one.
        """
        files.make_directory(self.root, 0o700)
        if not certs.complete(self.certs):
            certs.init_certs(self.certs, [], client=certs.login_name())
        files.make_directory(self.configs)
        peers = {role: f"127.0.0.1:{(ports or DEFAULT_PORTS)[role]}" for role in DEFAULT_PORTS}
        for role in ROLES:
            if self.config_path(role).exists():
                continue
            pems = {"ca": "ca.pem", "cert": f"{role}.pem", "key": f"{role}.key"}
            if role in peers:
                pems |= {"crl": "crl.pem"}
            config: dict[str, Any] = {
                "role": role,
                "peers": peers,
                "tls": {key: str(self.certs / name) for key, name in pems.items()},
            }
            if role in peers:
                config |= {"listen": peers[role], "data_dir": str(self.root / "data" / role), "threads": threads}
            files.write(self.config_path(role), yaml.safe_dump(config, sort_keys=False))
        if network is not None:
            self._set_network(network)

    def _set_network(self, network: Network) -> None:
        unshaped = Network(name="loopback", rtt_ms=0)
        stale = [role for role in SHAPED if (self._network(role) or unshaped) != network]
        pids = self._pids()
        running = [role for role in stale if _alive(pids.get(role))]
        if running:
            raise ClusterError(f"{', '.join(running)} already on another network; stop the cluster first")
        for role in stale:
            path = self.config_path(role)
            config = yaml.safe_load(path.read_text()) | {"network": network.model_dump()}
            files.write(path, yaml.safe_dump(config, sort_keys=False))

    def _network(self, role: str) -> Network | None:
        path = self.config_path(role)
        if role == "client":
            return load_config(path, ClientConfig).network
        return load_config(path, DealerConfig).network if role == "dealer" else load_config(path, PartyConfig).network

    def up(self, timeout: float = 60) -> list[Process]:
        """Start what does not run and wait until every server answers its health check."""
        files.make_directory(self.logs)
        pids = self._pids()
        for role in SERVERS:
            if _alive(pids.get(role)) is None:
                self._refuse_taken_port(role)
                pids[role] = self._start(role)
                self._save(pids)
        deadline = time.monotonic() + timeout
        while True:
            processes = self.status()
            if all(p.state == "serving" for p in processes):
                return processes
            for process in processes:
                if process.state == "untrusted":
                    raise CertificateError(f"{process.role} runs with certificates of another authority; stop it first")
                if process.state == "stopped":
                    raise ClusterError(f"{process.role} stopped while starting; {self._log_tail(process.role)}")
            if time.monotonic() > deadline:
                late = ", ".join(p.role for p in processes if p.state != "serving")
                raise ClusterError(f"no answer from {late} within {timeout:.0f} s; see {self.logs}")
            time.sleep(0.1)

    def status(self) -> list[Process]:
        pids = self._pids()
        processes = []
        for role in SERVERS:
            if not self.config_path(role).exists():
                processes.append(Process(role, f"127.0.0.1:{DEFAULT_PORTS[role]}", None, "stopped"))
                continue
            running = _alive(pids.get(role))
            state = self._health(role) if running else "stopped"
            processes.append(Process(role, self._address(role), running.pid if running else None, state))
        return processes

    def down(self, grace: float = 5) -> list[str]:
        """Stop every server, first kindly; returns the roles that ran."""
        running = {role: process for role, entry in self._pids().items() if (process := _alive(entry))}
        for process in running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, stubborn = psutil.wait_procs(list(running.values()), timeout=grace)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout=grace)
        self._state.unlink(missing_ok=True)
        return list(running)

    def _start(self, role: str) -> dict[str, Any]:
        threads = str(yaml.safe_load(self.config_path(role).read_text()).get("threads", 1))
        # The server's own thread count decides; OpenMP would otherwise take every core for each process.
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with (self.logs / f"{role}.log").open("ab") as log:
            child = subprocess.Popen(
                self._command(role),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment,
            )  # fmt: skip
        return {"pid": child.pid, "started": psutil.Process(child.pid).create_time()}

    def _command(self, role: str) -> list[str]:
        """What starts a server; its own process, no shell or parent that stays in between."""
        return [sys.executable, "-m", MODULES[role], str(self.config_path(role).resolve())]

    def _refuse_taken_port(self, role: str) -> None:
        host, port = self._address(role).rsplit(":", 1)
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, int(port))) == 0:
                raise ClusterError(f"port {port} for {role} is taken by another process; change {self.configs}")

    def _health(self, role: str) -> str:
        client = self.client_config()
        try:
            with open_channel(client.peers.of(role), role, client.tls, "client") as channel:
                connect(channel, role, timeout=1)
        except CertificateError:
            return "untrusted"
        except DittoError:
            return "starting"
        return "serving"

    def _address(self, role: str) -> str:
        return self.client_config().peers.of(role)

    def _log_tail(self, role: str, lines: int = 5) -> str:
        path = self.logs / f"{role}.log"
        tail = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n  ".join([f"the end of {path}:", *tail])

    def _pids(self) -> dict[str, dict[str, Any]]:
        try:
            pids: dict[str, dict[str, Any]] = json.loads(self._state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return pids

    def _save(self, pids: dict[str, dict[str, Any]]) -> None:
        files.write(self._state, json.dumps(pids))


@contextlib.contextmanager
def embedded(threads: int = 1, timeout: float = 60, network: Network | None = None) -> Iterator[Cluster]:
    """A cluster of real processes in a temporary directory; stopped and removed when the block ends."""
    root = Path(tempfile.mkdtemp(prefix="ditto-"))
    cluster = Cluster(root)
    try:
        cluster.configure(ports=_free_ports(), threads=threads, network=network)
        cluster.up(timeout)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        ports = {}
        for role in DEFAULT_PORTS:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[role] = int(probe.getsockname()[1])
        return ports


def _alive(entry: dict[str, Any] | None) -> psutil.Process | None:
    """The process of an entry, if it is still that one: process ids are used again."""
    if entry is None:
        return None
    try:
        process = psutil.Process(entry["pid"])
        same = abs(process.create_time() - entry["started"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None

"""A cluster on this machine: configurations, processes, health.

The processes are started detached, with their process ids in `cluster.json`; any later `ditto` command finds them
there. One command at a time changes a cluster: others wait for its lock. `embedded()` is the same in a temporary
directory on free ports, gone when the block ends; its servers are forked from one process that loads their programs
once (`ditto.client.together`), and known as any others.
"""

import contextlib
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from ditto import files
from ditto.client import pids
from ditto.client.home import home as home
from ditto.client.together import CONFIGS, LOGS, MODULES, Place, Together, command, env_of, names, role_of, starting
from ditto.client.workers import FURTHER_PORT, configurations
from ditto.errors import CertificateError, ClusterError, ConfigError, DittoError
from ditto.names import PARTIES, ROLES
from ditto.net import certs
from ditto.net.config import DEFAULT_PORTS, ClientConfig, CoordinatorConfig, DealerConfig, PartyConfig, load_config
from ditto.net.documents import read_yaml
from ditto.net.emulation import Network
from ditto.net.transport import connect, open_channel

_KINDS: dict[str, Any] = dict.fromkeys(PARTIES, PartyConfig) | {
    "dealer": DealerConfig,
    "coordinator": CoordinatorConfig,
}
SHAPED = ("dealer", *PARTIES, "client")  # whose configuration names the network; the client's for reports


def client_config(path: Path | None = None) -> ClientConfig:
    """What connects a client: this file, or the local cluster's. Raises ConfigError."""
    path = path or Cluster(home()).config_path("client")
    if not path.exists():
        raise ConfigError(f"{path}: no such file; run `ditto cluster up` or name a client configuration with --config")
    return load_config(path, ClientConfig)


@dataclass(frozen=True)
class Process:
    """One process of the cluster: its name (its role; of a party's further workers as party0-1), its address, and
    whether it runs and answers."""

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
    """The servers whose state lies in one directory: four, or more where parties have several workers."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda _: None) -> None:
        """`say` is told what a user should know while a command waits."""
        self.root = root.absolute()
        self.certs = self.root / "certs"
        self.configs = self.root / CONFIGS
        self.logs = self.root / LOGS
        self._state = self.root / "cluster.json"
        self._say = say

    def config_path(self, role: str) -> Path:
        return self.configs / f"{role}.yaml"

    def client_config(self) -> ClientConfig:
        return load_config(self.config_path("client"), ClientConfig)

    def configure(
        self,
        *,
        ports: dict[str, int] | None = None,
        threads: int | Literal["auto"] = 1,
        network: Network | None = None,
        record: int | None = None,
        workers: int | None = None,
    ) -> None:
        """Certificates and one configuration for each server; what stands there already is kept, ports given or not.

        Only a network, how many jobs a party records, and how many workers it has, where they are given, are also
        written into configurations that stand there. They are not touched, and it is an error, if a process runs with
        another one.
        """
        files.make_directory(self.root, 0o700)
        with self._alone():
            self._configure(ports or DEFAULT_PORTS, threads)
            if workers is not None:
                self._set_workers(workers, ports or {})
            if network is not None:
                self._set_network(network)
            if record is not None:
                self._set_recording(record)

    def _configure(self, ports: dict[str, int], threads: int | Literal["auto"]) -> None:
        if not certs.complete(self.certs):
            certs.init_certs(self.certs, [], client=certs.login_name())
        files.make_directory(self.configs)
        peers = {role: f"127.0.0.1:{ports[role]}" for role in DEFAULT_PORTS}
        for role in ROLES:
            if self.config_path(role).exists():
                continue
            pems = {"ca": "ca.pem", "cert": f"{role}.pem", "key": f"{role}.key", "crl": "crl.pem"}
            config: dict[str, Any] = {
                "role": role,
                "peers": peers,
                "tls": {key: str(self.certs / name) for key, name in pems.items()},
            }
            if role in peers:
                config |= {"listen": peers[role], "data_dir": str(self.root / "data" / role), "threads": threads}
            files.write(self.config_path(role), yaml.safe_dump(config, sort_keys=False))
        for role in self._names():
            self._give_storage_key(role)

    def _names(self) -> tuple[str, ...]:
        """Of the servers, as the client's configuration has them."""
        with contextlib.suppress(ConfigError):
            return names(len(self.client_config().peers.workers(PARTIES[0])))
        return names()

    def _set_workers(self, workers: int, ports: dict[str, int]) -> None:
        """What a worker has that is not wanted any more stays where it is."""
        if names(workers) == self._names():
            return
        if running := self._running():
            raise ClusterError(f"{', '.join(running)} already running with another number of workers; stop the cluster")
        read = lambda name: read_yaml(path) if (path := self.config_path(name)).exists() else None  # noqa: E731
        found = configurations(workers, self.root, {r: self._address(r) for r in DEFAULT_PORTS}, ports, read)
        for name, config in found.items():
            files.write(self.config_path(name), yaml.safe_dump(config, sort_keys=False))
        for name in self._names():
            self._give_storage_key(name)

    def _give_storage_key(self, role: str) -> None:
        """Name a key file in a configuration that says nothing of storage, and make one where there is none."""
        text = self._text(role)
        if re.search(r"^storage", text, re.MULTILINE):
            return
        path = self.root / "keys" / f"{role}.key"
        files.make_directory(path.parent, 0o700)
        if not path.exists():
            files.write(path, secrets.token_hex(32) + "\n", files.PRIVATE)
        files.write(self.config_path(role), f"{text.rstrip()}\nstorage_key: {path}\n")

    def _text(self, role: str) -> str:
        path = self.config_path(role)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', 'no text')}") from None

    def _set_network(self, network: Network) -> None:
        unshaped = Network(name="loopback", rtt_ms=0)
        shaped = [name for name in (*self._names(), "client") if role_of(name)[0] in SHAPED]
        stale = [name for name in shaped if (self._network(name) or unshaped) != network]
        self._change(stale, {"network": network.model_dump()}, "already on another network")

    def _set_recording(self, jobs: int) -> None:
        parties = [name for name in self._names() if role_of(name)[0] in PARTIES]
        stale = [name for name in parties if load_config(self.config_path(name), PartyConfig).record != jobs]
        self._change(stale, {"record": jobs}, "already running with another number of recorded jobs")

    def _change(self, roles: list[str], fields: dict[str, Any], otherwise: str) -> None:
        """Write fields into configurations. Raises ClusterError if one of these processes runs."""
        running = [role for role in roles if role in self._running()]
        if running:
            raise ClusterError(f"{', '.join(running)} {otherwise}; stop the cluster first")
        for role in roles:
            path = self.config_path(role)
            config = read_yaml(path) | fields
            files.write(path, yaml.safe_dump(config, sort_keys=False))

    def _network(self, role: str) -> Network | None:
        path = self.config_path(role)
        if role == "client":
            return load_config(path, ClientConfig).network
        return load_config(path, DealerConfig).network if role == "dealer" else load_config(path, PartyConfig).network

    @contextlib.contextmanager
    def _alone(self, timeout: float = 120) -> Iterator[None]:
        """Among all commands that change this cluster. Raises ClusterError after `timeout` seconds of waiting."""
        try:
            with files.locked(self.root / "cluster.lock", timeout, lambda: self._say("waiting for another command")):
                yield
        except TimeoutError:
            raise ClusterError(f"another command has been at work on {self.root} for {timeout:.0f} s") from None

    def up(
        self, timeout: float = 60, waiting: Callable[[list[str]], None] = lambda _: None,
        together: Together | None = None,
    ) -> list[Process]:  # fmt: skip
        """Start what does not run and wait until every server answers its health check.

        If one does not, those that this call started are stopped again; what ran before runs on. `waiting` hears, again
        and again, which roles do not answer yet. `together` forks all servers, of which none runs.
        """
        files.make_directory(self.logs)
        with self._alone():
            before, started = self._running(), dict[str, psutil.Process]()
            if late := [role for role in self._names() if role not in before]:
                waiting(late)
            try:
                if together is not None:
                    self._fork(together, timeout)
                    started = self._running()
                    return self._until_serving(timeout, waiting)
                for role in self._names():
                    if role not in before:
                        self._refuse_taken_port(role)
                        started[role] = self._start(role)
                        pids.write(self._state, self._pids() | {role: started[role].pid})
                return self._until_serving(timeout, waiting)
            except BaseException:
                self._stop(started)
                raise

    def _until_serving(self, timeout: float, waiting: Callable[[list[str]], None]) -> list[Process]:
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
            late = [p.role for p in processes if p.state != "serving"]
            waiting(late)
            if time.monotonic() > deadline:
                raise ClusterError(f"no answer from {', '.join(late)} within {timeout:.0f} s; see {self.logs}")
            time.sleep(0.1)

    def status(self) -> list[Process]:
        running = self._running()
        processes = []
        for role in self._names():
            if not self.config_path(role).exists():
                port = DEFAULT_PORTS.get(role, FURTHER_PORT)
                processes.append(Process(role, f"127.0.0.1:{port}", None, "stopped"))
                continue
            process = running.get(role)
            state = self._health(role) if process else "stopped"
            processes.append(Process(role, self._address(role), process.pid if process else None, state))
        return processes

    def unconfirmed(self) -> dict[str, int]:
        """Recorded ids of processes that live, but are not known to be servers of this cluster. They are left alone."""
        running = self._running()
        return {role: pid for role, pid in self._pids().items() if role not in running and pids.alive(pid)}

    def set_aside(self) -> dict[str, int]:
        """How many damaged files each server put aside as NAME.damaged, where there are any."""
        found = {}
        for role in self._names():
            with contextlib.suppress(OSError, ConfigError, KeyError, TypeError, ValueError):
                data = self.configs / read_yaml(self.config_path(role))["data_dir"]
                found[role] = len(list(data.rglob("*.damaged")))
        return {role: count for role, count in found.items() if count}

    def down(self, grace: float = 5) -> list[str]:
        """Stop every server, first kindly; returns the roles that ran. Raises ClusterError if one does not end."""
        if not self.root.exists():
            return []
        with self._alone():
            running = self._running()
            self._stop(running, grace)
            return list(running)

    def _stop(self, running: dict[str, psutil.Process], grace: float = 5) -> None:
        """Afterwards only what may still run is on record."""
        stubborn = pids.stop(running.values(), grace)
        left = [role for role, process in running.items() if process in stubborn]
        kept = {role: pid for role, pid in self._pids().items() if role not in running or role in left}
        pids.write(self._state, {role: pid for role, pid in kept.items() if pids.alive(pid)})
        if left:
            named = ", ".join(f"{role} (process {running[role].pid})" for role in left)
            raise ClusterError(f"cannot be stopped: {named}")

    def _fork(self, together: Together, timeout: float) -> None:
        """Raises ClusterError unless all are forked; on record are those that were in any case."""
        try:
            forked = together.fork(timeout)
        finally:
            pids.write(self._state, together.pids)
        if not forked:
            raise ClusterError(f"the servers could not be started; {self._log_tail('together')}")

    def _start(self, role: str) -> psutil.Process:
        own = env_of(self._threads(role))
        with (self.logs / f"{role}.log").open("ab") as log:
            child = subprocess.Popen(
                self._command(role),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=own,
            )  # fmt: skip
        return psutil.Process(child.pid)

    def _threads(self, role: str) -> str:
        threads = read_yaml(self.config_path(role)).get("threads", 1)
        if threads == "auto":
            threads = load_config(self.config_path(role), _KINDS[role_of(role)[0]]).thread_count
        return str(threads)

    def _command(self, role: str) -> list[str]:
        """What starts a server, and how its process is known again."""
        return command(role, self.config_path(role))

    def _refuse_taken_port(self, role: str, patience: float = 5) -> None:
        """A killed server's port is open until the last of its threads has ended, which may be after it is gone."""
        host, port = self._address(role).rsplit(":", 1)
        deadline = time.monotonic() + patience
        while _listening(host, int(port)):
            if time.monotonic() > deadline:
                raise ClusterError(f"port {port} for {role} is taken by another process; change {self.configs}")
            time.sleep(0.1)

    def _health(self, role: str) -> str:
        client = self.client_config()
        try:
            with open_channel(self._address(role), role_of(role)[0], client.tls, "client") as channel:
                connect(channel, role, timeout=1)
        except CertificateError:
            return "untrusted"
        except DittoError:
            return "starting"
        return "serving"

    def _address(self, role: str) -> str:
        return self.client_config().peers.of(*role_of(role))

    def _log_tail(self, role: str, lines: int = 5) -> str:
        path = self.logs / f"{role}.log"
        tail = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n  ".join([f"the end of {path}:", *tail])

    def _pids(self) -> dict[str, int]:
        return pids.read(self._state)

    def _running(self) -> dict[str, psutil.Process]:
        """The recorded processes that are servers of this cluster."""
        known = {role: pid for role, pid in self._pids().items() if role.partition("-")[0] in MODULES}
        found = {role: pids.server(pid, self._command(role)) for role, pid in known.items()}
        return {role: process for role, process in found.items() if process}


@contextlib.contextmanager
def embedded(
    threads: int = 1, timeout: float = 60, network: Network | None = None,
    waiting: Callable[[list[str]], None] = lambda late: None, workers: int = 1,
) -> Iterator[Cluster]:  # fmt: skip
    """A cluster of real processes in a temporary directory; stopped and removed when the block ends. `waiting` as of
    `Cluster.up`."""
    with starting(threads, workers) as place, serving(place, timeout, network, waiting) as cluster:
        yield cluster


@contextlib.contextmanager
def serving(
    place: Place, timeout: float = 60, network: Network | None = None,
    waiting: Callable[[list[str]], None] = lambda late: None,
) -> Iterator[Cluster]:  # fmt: skip
    """The cluster that starts there; stopped when the block ends."""
    cluster = Cluster(place.root)
    try:
        ports = _free_ports(place.workers)
        cluster.configure(ports=ports, threads=place.threads, network=network, workers=place.workers)
        cluster.up(timeout, waiting, together=place.together)
        yield cluster
    finally:
        cluster.down()


def _listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        # a connection to a port that nobody holds may come from that very port
        return probe.connect_ex((host, port)) == 0 and probe.getsockname() != probe.getpeername()


def _free_ports(workers: int = 1) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        ports = {}
        for role in names(workers):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[role] = int(probe.getsockname()[1])
        return ports

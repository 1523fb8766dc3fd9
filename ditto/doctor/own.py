"""A server's own configuration, on its machine: files, key, port, and whom it has to reach."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from ditto.doctor import certificates, machine
from ditto.doctor.finding import Finding, Verdict, failed, ok, warning
from ditto.doctor.probe import Way
from ditto.doctor.servers import reach
from ditto.errors import ClusterError, ConfigError, DittoError
from ditto.names import PARTIES, SERVERS
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, Peers, ServerConfig, load_config
from ditto.net.documents import read_yaml
from ditto.net.tls import load_tls
from ditto.service.storage import Storage, key_of, witnessed

CALLS = {
    "dealer": (),
    "party0": ("dealer",),
    "party1": ("dealer", "party0"),
    "coordinator": ("party0", "party1", "dealer"),
}


def of_server(path: Path) -> Iterator[Finding]:
    try:
        config = _load(path)
    except DittoError as error:
        yield failed("server", "configuration", error, "correct the file; docs/operating.md lists the keys")
        return
    role = config.role
    yield ok(role, "configuration", f"{path}: {role}, listens on {config.listen}, {config.thread_count} thread(s)")
    own = list(certificates.own(role, config.tls, role))
    yield from own
    yield _key(config)
    yield from machine.directory(role, "data directory", config.data_dir)
    if any(f.verdict is Verdict.failed and f.check == "certificate" for f in own):
        return
    yield _port(config)
    ways = reach(_places(config), config.tls, role, (*CALLS[role], *([role] if config.number else [])))
    for way in ways.values():
        yield from way.findings
        way.close()


def _places(config: ServerConfig) -> Peers:
    """Of those that a server calls: a worker its like at the other party, and its keeper under its own role."""
    if not isinstance(config, PartyConfig) or not config.worker:
        return config.peers
    pair = {role: (config.peers.of(role, config.worker),) for role in PARTIES}
    return config.peers.model_copy(update=pair | {config.role: (config.keeper_address,)})


def _load(path: Path) -> ServerConfig:
    role = read_yaml(path).get("role")
    if role not in SERVERS:
        raise ConfigError(f"{path}: role: {role!r} is no server's: {', '.join(SERVERS)}")
    if role in PARTIES:
        return load_config(path, PartyConfig)
    return load_config(path, DealerConfig) if role == "dealer" else load_config(path, CoordinatorConfig)


def _key(config: ServerConfig) -> Finding:
    """The storage key: is it there, alone its owner's, and the one that the files were written under?"""
    role, check = config.role, "storage key"
    if config.storage == "plaintext":
        return warning(role, check, "storage: plaintext; what is kept is not encrypted", "name a storage_key")
    try:
        used = witnessed(Storage(key_of(config.storage_key)), config.data_dir, role)
    except DittoError as error:
        return failed(role, check, error, "name the file with the key that this server was started with before")
    path = config.storage_key
    if path is not None and (mode := path.stat().st_mode) & 0o077:
        return warning(role, check, f"others may read {path} ({mode & 0o777:03o})", f"chmod 600 {path}")
    where = path or "in the environment"
    return ok(role, check, f"{where}: " + ("its files are under this key" if used else "nothing is stored yet"))


def _port(config: ServerConfig) -> Finding:
    """Free, or its own; for the latter the server shows its certificate."""
    role, check = config.role, "port"
    host, _, port = config.listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
        return ok(role, check, f"{config.listen} is free: the server does not run")
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            return failed(role, check, ConfigError(f"cannot listen on {config.listen}: {why}"), "correct `listen`")
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    way = Way(role, f"{here}:{port}", config.tls, role).go(load_tls(config.tls, role))
    way.close()
    if way.channel:
        return ok(role, check, f"{config.listen}: this server runs there")
    taken = ClusterError(f"{config.listen} is taken, and not by this server: {way.findings[-1].found}")
    return failed(role, check, taken, "end what listens there, or change `listen`")

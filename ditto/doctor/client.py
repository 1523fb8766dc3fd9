"""A client: its configuration, its certificate, and the servers that it asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ditto.client.home import home
from ditto.client.local_cluster import Cluster
from ditto.doctor import certificates, servers
from ditto.doctor.finding import Finding, Verdict, failed, ok, warning
from ditto.errors import ConfigError, DittoError
from ditto.names import SERVERS
from ditto.net.config import ClientConfig, load_config

ME = "client"


def of_client(path: Path | None) -> Iterator[Finding]:
    named = path is not None
    path = path or Cluster(home()).config_path("client")
    if not path.exists():
        text = f"{path}: no such file"
        if named:
            yield failed(ME, "configuration", ConfigError(text), "correct --config or $DITTO_CONFIG")
        else:
            yield warning(ME, "configuration", text, "`ditto cluster up`, or name a client's file with --config")
        return
    try:
        config = load_config(path, ClientConfig)
    except DittoError as error:
        yield failed(ME, "configuration", error, "correct the file; docs/operating.md lists the keys")
        return
    at = ", ".join(f"{role} {config.peers.of(role)}" for role in SERVERS)
    emulated = f"; emulates {config.network.name}" if config.network else ""
    yield ok(ME, "configuration", f"{path}: {at}{emulated}")
    own = list(certificates.own(ME, config.tls, "client"))
    yield from own
    if any(finding.check == "certificate" and finding.verdict is Verdict.failed for finding in own):
        return  # no server would let it in
    yield from servers.of_client(config)

"""Four servers of one's own: while they start, what their client needs is loaded."""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import TYPE_CHECKING

from ditto.client.local_cluster import embedded
from ditto.client.store import models_dir
from ditto.net.emulation import network as profile

if TYPE_CHECKING:
    from ditto.api.cluster import Cluster


def local(*, threads: int = 1, network: str | None = None) -> Cluster:
    """Four servers of one's own on this machine, in a temporary directory; stopped and removed by `close`, or when the
    interpreter ends. `network`: emulate this one.

    What is shared with them is gone with them. Models that this user imported before are shared when they are asked
    for first.
    """
    emulated, servers = profile(network) if network else None, contextlib.ExitStack()
    try:
        running = servers.enter_context(embedded(threads, network=emulated, meanwhile=_load))
        from ditto.api.cluster import Cluster

        return Cluster(running.client_config(), [running.root / "models", models_dir()], servers, bring=True)
    except BaseException:
        servers.close()
        raise


def _load() -> None:
    """What loads torch, as every server does at the same time."""
    import_module("ditto.api.cluster")

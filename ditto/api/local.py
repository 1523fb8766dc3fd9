"""Four servers of one's own: they start before what their client needs is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ditto.client.together import starting

if TYPE_CHECKING:
    from ditto.api.cluster import Cluster


def local(*, threads: int = 1, network: str | None = None) -> Cluster:
    """Four servers of one's own on this machine, in a temporary directory; stopped and removed by `close`, or when the
    interpreter ends. `network`: emulate this one.

    What is shared with them is gone with them. Models that this user imported before are shared when they are asked
    for first.
    """
    return started(threads, network)


def started(
    threads: int, network: str | None = None, waiting: Callable[[list[str]], None] = lambda late: None
) -> Cluster:
    """The same; `waiting` hears, again and again, which servers do not answer yet."""
    servers = contextlib.ExitStack()
    try:
        place = servers.enter_context(starting(threads))
        from ditto.api.cluster import Cluster  # with torch, as the servers do at the same time
        from ditto.client.local_cluster import serving
        from ditto.client.store import models_dir
        from ditto.net.emulation import network as profile

        running = servers.enter_context(serving(place, network=profile(network) if network else None, waiting=waiting))
        return Cluster(running.client_config(), [running.root / "models", models_dir()], servers, bring=True)
    except BaseException:
        servers.close()
        raise

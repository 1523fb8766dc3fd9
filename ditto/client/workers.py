"""A local cluster whose parties have several workers: what its configurations say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditto.client.together import names, role_of
from ditto.names import PARTIES

FURTHER_PORT = 50054  # of party 0's second worker; party 1's is the next one, and so on


def configurations(
    workers: int, root: Path, addresses: Mapping[str, str], ports: Mapping[str, int],
    read: Callable[[str], dict[str, Any] | None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By name, with `workers` of each party. `addresses` of the four roles; `ports` of further workers, by name, where
    they are not the usual ones; `read` gives what stands there.

    A further worker's is its party's first one's, with a place, a port and a directory of its own; one that stands
    there is kept.
    """
    peers: dict[str, Any] = {role: [address] for role, address in addresses.items()}
    for name in names(workers):
        role, worker = role_of(name)
        if worker:
            port = ports.get(name) or FURTHER_PORT + 2 * (worker - 1) + PARTIES.index(role)
            peers[role].append(f"127.0.0.1:{port}")
    said = {role: found if len(found) > 1 else found[0] for role, found in peers.items()}
    made = {}
    for name in (*names(workers), "client"):
        role, worker = role_of(name)
        config = read(name)
        if config is None:
            config = (read(role) or {}) | {"data_dir": str(root / "data" / name)}
            config.pop("storage_key", None)
        if worker:
            config |= {"worker": worker, "listen": peers[role][worker]}
        made[name] = config | {"peers": said}
    return made

"""Whose process is at the other end of a connection within this machine. Linux says; elsewhere nobody does."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

from starlette.types import Scope

ESTABLISHED = "01"


def ours(scope: Scope) -> bool:
    """Whether a request by TCP comes from a process of this user, or of root. Anybody's where it cannot be told."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not any(table.exists() for table in tables):
        return True
    client, server = scope.get("client"), scope.get("server")
    if not client or not server:
        return False
    wanted = _written(*client), _written(*server)
    return any(_owner(table, wanted) in (0, os.getuid()) for table in tables)


def _owner(table: Path, wanted: tuple[str, str]) -> int | None:
    """The user of the connection whose own end and other end are these."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if (fields[1], fields[2]) == wanted and fields[3] == ESTABLISHED:
            return int(fields[7])
    return None


def _written(host: str, port: int) -> str:
    """An address as the kernel prints it: words of four bytes, as the processor has them."""
    packed = ipaddress.ip_address(host).packed
    words = (packed[i : i + 4] for i in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"

"""`python -m parties.health CONFIG`: ends with 0 if the server of this configuration answers its health check.

For health checks and probes of containers, with the server's own certificate. It loads neither torch nor `ditto`:
asking every few seconds must cost little.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import yaml

CHECK = "/grpc.health.v1.Health/Check"
_UNREADABLE = (
    OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, yaml.YAMLError
)  # fmt: skip
SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING)


class _ShallowLoader(yaml.SafeLoader):
    """As the servers' own: refuses a deep nesting, which takes a time that grows with its square."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= 32:
            raise yaml.YAMLError("nested too deeply")
        super().fetch_flow_collection_start(TokenClass)


class Target(NamedTuple):
    """A server on this machine, and the PEM files to ask it with."""

    role: str
    address: str
    pems: list[bytes]  # authority, key, certificate


def target(path: Path) -> Target | None:
    """The server that `path` configures; None where it configures none. Its own start says why."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _ShallowLoader)
        host, port = config["listen"].rsplit(":", 1)
        address = f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"
        pems = [(path.parent / config["tls"][name]).read_bytes() for name in ("ca", "key", "cert")]
        return Target(str(config["role"]), address, pems)
    except _UNREADABLE:
        return None


def serving(path: Path, timeout: float = 3.0) -> bool:
    """Ask the server that `path` configures. Raises grpc.RpcError if it does not answer."""
    found = target(path)
    if found is None:
        return False
    options = [("grpc.ssl_target_name_override", found.role), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(found.address, grpc.ssl_channel_credentials(*found.pems), options) as channel:
        return bool(channel.unary_unary(CHECK)(b"", timeout=timeout) == SERVING)


if __name__ == "__main__":
    try:
        sys.exit(0 if serving(Path(sys.argv[1])) else "not serving")
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

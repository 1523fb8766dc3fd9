"""`python -m parties.health CONFIG`: ends with 0 if the server of this configuration answers its health check.

For health checks and probes of containers, with the server's own certificate. It loads neither torch nor `ditto`:
asking every few seconds must cost little.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import yaml

CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING)


def serving(path: Path, timeout: float = 3.0) -> bool:
    """Ask the server that `path` configures, on this machine. Raises grpc.RpcError if it does not answer."""
    config = yaml.safe_load(path.read_text())
    ca, key, cert = ((path.parent / config["tls"][name]).read_bytes() for name in ("ca", "key", "cert"))
    host, port = config["listen"].rsplit(":", 1)
    address = f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"
    options = [("grpc.ssl_target_name_override", config["role"]), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options) as channel:
        return bool(channel.unary_unary(CHECK)(b"", timeout=timeout) == SERVING)


if __name__ == "__main__":
    try:
        sys.exit(0 if serving(Path(sys.argv[1])) else "not serving")
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

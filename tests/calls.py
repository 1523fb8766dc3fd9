"""One call of a server's method, as whoever holds a certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from ditto.net.config import ClientConfig, Tls
from ditto.net.transport import from_rpc_error, open_channel


def call(
    config: ClientConfig,
    peer: str,
    method: Callable[[grpc.Channel], Any],
    tls: Tls | None = None,
    role: str = "client",
    **options: Any,
) -> Any:
    """One call to `peer`, as the client unless told otherwise; raises the DittoError that came back."""
    with open_channel(config.peers.of(peer), peer, tls or config.tls, role, **options) as channel:
        try:
            return method(channel)
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer) from None

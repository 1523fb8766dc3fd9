"""`python -m parties.coordinator --config FILE`: the coordinator."""

from __future__ import annotations

import sys

import grpc

from ditto.net.config import CoordinatorConfig
from ditto.net.tracing import Tracing
from ditto.net.transport import build_server
from ditto.service.coordinator_service import ROLES, CoordinatorService
from ditto.service.process import main
from ditto.wire import control_pb2_grpc


def start(config: CoordinatorConfig, tracing: Tracing) -> tuple[grpc.Server, int, CoordinatorService]:
    server, port = build_server(
        config.listen,
        config.tls,
        config.role,
        ROLES,
        config.max_message_mb,
        config,
        config.queue_limit,
        config.silence_s,
    )
    service = CoordinatorService(config, tracing)
    control_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    return server, port, service


if __name__ == "__main__":
    sys.exit(main(CoordinatorConfig, start))

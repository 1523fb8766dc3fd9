"""`python -m parties.dealer --config FILE`: the dealer."""

from __future__ import annotations

import sys

import grpc

from ditto.net.config import DealerConfig
from ditto.net.tracing import Tracing
from ditto.net.transport import build_server
from ditto.service.dealer_service import ROLES, DealerService
from ditto.service.process import main
from ditto.wire import dealer_pb2_grpc


def start(config: DealerConfig, tracing: Tracing) -> tuple[grpc.Server, int, DealerService]:
    server, port = build_server(
        config.listen, config.tls, config.role, ROLES, config.max_message_mb, config, silence_s=config.silence_s
    )
    service = DealerService(config, tracing)
    dealer_pb2_grpc.add_DealerServicer_to_server(service, server)
    return server, port, service


if __name__ == "__main__":
    sys.exit(main(DealerConfig, start))

"""`python -m parties.party --config FILE`: party 0 or party 1."""

from __future__ import annotations

import sys

import grpc

from ditto.net.config import PartyConfig
from ditto.net.tracing import Tracing
from ditto.net.transport import build_server
from ditto.service.party_service import LinkService, PartyService, roles
from ditto.service.process import main
from ditto.wire import party_pb2_grpc


def start(config: PartyConfig, tracing: Tracing) -> tuple[grpc.Server, int, PartyService]:
    server, port = build_server(
        config.listen, config.tls, config.role, roles(config), config.max_message_mb, config, silence_s=config.silence_s
    )
    service = PartyService(config, tracing)
    party_pb2_grpc.add_PartyServicer_to_server(service, server)
    if config.index == 0:
        party_pb2_grpc.add_PeerLinkServicer_to_server(LinkService(service.link), server)
    return server, port, service


if __name__ == "__main__":
    sys.exit(main(PartyConfig, start))

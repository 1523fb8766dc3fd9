"""What servers say of themselves and of their links, as a client may ask them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc

from ditto.names import server_name
from ditto.net.transport import from_rpc_error
from ditto.wire import control_pb2, control_pb2_grpc, dealer_pb2, party_pb2, party_pb2_grpc


@dataclass(frozen=True)
class About:
    """`time`: by the server's clock, in seconds since 1970. `kernels`: by the bits of rings."""

    version: str
    description_format: int
    time: float
    kernels: dict[int, str]
    threads: int = 0  # 0: not known


@dataclass(frozen=True)
class Link:
    """To a server, in seconds and bytes a second; 0: not known. `error`: why it is not reached."""

    role: str
    round_trip: float
    error: str = ""
    received: float = 0.0


@dataclass(frozen=True)
class Said:
    """What one server said. `at`: by this machine's clock, when the answer was there. `about` is None of a server of an
    earlier version."""

    at: float
    about: About | None
    links: tuple[Link, ...] = ()
    peer_link: bool | None = None  # of a party: does the stream to the other one stand?
    dealer: About | None = None  # as the coordinator passes it on
    faults: tuple[str, ...] = field(default=())
    workers: dict[str, bool] = field(default_factory=dict)  # of the coordinator: which further ones answer it


def party(channel: grpc.Channel, role: str, links: bool, timeout: float) -> Said:
    """Raises what `from_rpc_error` makes of a failed call; CertificateError."""
    ask = party_pb2.PartyModelsRequest(page_size=1, links=links)
    try:
        reply = party_pb2_grpc.PartyStub(channel).ListModels(ask, timeout=timeout)
    except grpc.RpcError as error:
        raise from_rpc_error(error, role) from None
    at = time.time()
    found = tuple(Link(link.role, link.round_trip, link.error, link.received) for link in reply.links)
    return Said(at, _about(reply.about) if reply.HasField("about") else None, found, reply.peer_link)


def coordinator(channel: grpc.Channel, timeout: float) -> Said:
    """The same; it takes seconds where other servers do not answer it."""
    try:
        reply = control_pb2_grpc.CoordinatorStub(channel).Status(control_pb2.StatusRequest(), timeout=timeout)
    except grpc.RpcError as error:
        raise from_rpc_error(error, "coordinator") from None
    return Said(
        at=time.time(),
        about=_about(reply.about) if reply.HasField("about") else None,
        links=tuple(
            Link(p.role, p.round_trip, p.error) for p in reply.processes if p.role != "coordinator" and not p.worker
        ),
        workers={server_name(p.role, p.worker): p.serving for p in reply.processes if p.worker},
        dealer=_about(reply.dealer.about) if reply.dealer.HasField("about") else None,
        faults=tuple(f"{fault.role} {fault.what}: {fault.model}" for fault in reply.faults),
    )


def _about(about: dealer_pb2.About) -> About:
    kernels = {kernel.bits: kernel.name for kernel in about.kernels}
    return About(about.version, about.description_format, about.time, kernels, about.threads)

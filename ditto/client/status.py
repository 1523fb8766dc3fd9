"""What a cluster is doing, for people and for JSON: its queue, the dealer's inventory, how fast the last jobs were."""

from __future__ import annotations

from typing import Any

import grpc

from ditto.names import PARTIES, server_name
from ditto.net.config import ClientConfig
from ditto.net.transport import connect, from_rpc_error, open_channel
from ditto.wire import control_pb2, control_pb2_grpc, party_pb2


def activity(reply: control_pb2.StatusReply) -> dict[str, Any]:
    """The fields of a status besides health. `dealer` is None when it does not answer."""
    dealer, throughput = reply.dealer, reply.throughput
    inventory = {
        "models": list(dealer.models),
        "job": dealer.job or None,
        "parties": {
            role: {"ready_bytes": party.ready, "sent_bytes": party.sent}
            for role, party in zip(PARTIES, dealer.parties, strict=False)
        },
    }
    return {
        "queue": {"running": list(reply.running), "waiting": reply.queued, "aside": reply.aside},
        "computing": _computing(reply),
        "workers": [
            {"role": p.role, "worker": p.worker, "address": p.address, "serving": p.serving, "error": p.error or None}
            for p in reply.processes
            if p.worker
        ],
        "faults": [{"model": f.model, "role": f.role, "what": f.what} for f in reply.faults],
        "stock": [
            {
                "model": s.model,
                "role": s.role,
                "batch": s.stocked.plan.batch,
                "seq": s.stocked.plan.seq,
                "tokens": s.stocked.plan.tokens,
                "jobs": s.stocked.count,
                "bytes": s.stocked.bytes,
            }
            for s in reply.stock
        ],
        "dealer": inventory if reply.HasField("dealer") else None,
        "throughput": {
            "done": throughput.done,
            "failed": throughput.failed,
            "cancelled": throughput.cancelled,
            "recent": throughput.recent,
            "mean_online_seconds": throughput.online_seconds if throughput.recent else None,
            "mean_offline_seconds": throughput.offline_seconds if throughput.recent else None,
        },
    }


def _computing(reply: control_pb2.StatusReply) -> dict[str, Any]:
    """What each server that multiplies computes with, as far as it is known."""
    found = {server_name(p.role, p.worker): p.about for p in reply.processes if p.HasField("about")}
    if reply.dealer.HasField("about"):
        found["dealer"] = reply.dealer.about
    return {
        role: {
            "threads": about.threads,
            "cores": about.cores,
            "kernels": {str(kernel.bits): kernel.name for kernel in about.kernels},
            "features": list(about.features),
        }
        for role, about in found.items()
    }


def traffic(counts: party_pb2.Traffic) -> dict[str, Any]:
    """One party's bytes of one job, counted at the frame."""
    return {
        "rounds": counts.rounds,
        "sent": {"payload": counts.payload_sent, "framing": counts.framing_sent},
        "received": {"payload": counts.payload_received, "framing": counts.framing_received},
        "from_dealer": {"payload": counts.dealt, "framing": counts.dealt_framing},
    }


def ask(config: ClientConfig, timeout: float = 10.0) -> dict[str, Any]:
    """The activity of the cluster that a client's configuration names. Raises PeerAbsent without a coordinator."""
    address = config.peers.coordinator
    channel = open_channel(address, "coordinator", config.tls, config.role, config.max_message_mb, config.silence_s)
    with channel:
        connect(channel, "coordinator", 1.0)
        stub = control_pb2_grpc.CoordinatorStub(channel)
        try:
            return activity(stub.Status(control_pb2.StatusRequest(), timeout=timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error, "coordinator") from None

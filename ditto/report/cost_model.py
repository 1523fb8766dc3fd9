"""The cost model: what a run that was measured on one network would take on another, from its report alone.

A report (`infer --json`, `bench model --json`) says for each layer and for the whole run how many seconds, rounds and
bytes it took. An emulated network (ditto.net.emulation) explains a known part of the online seconds, latency and
transfer:

    rounds * rtt / 2 + 8 * bytes / bandwidth        bytes: of the party that sends more

Both parties of an opening send at once, so a round costs the latency of one direction; the links are full duplex. What
is left of the measured seconds is the compute: the arithmetic and what the software of the links costs on that machine.
It stays the same on another network, and that network's own part is added.

Offline is the case of no overlap: `max(compute, 8 * bytes / bandwidth)` layer by layer, on the link from the dealer to
the party that receives more; the two links work at once. A run is faster where correlations arrive while the parties
are online; by how much depends on buffers that no report shows. The compute in it is the measured time, which on a
network of limited bandwidth contains waiting and is too large.

Every figure supposes the machine that was measured, as busy as it was then. Not predicted: what the client and the
coordinator send, the start of a job, other machines, lost packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.net.emulation import Network, network, networks


@dataclass(frozen=True)
class Prediction:
    """Seconds of one account (a layer or an operation) on one network."""

    compute: float  # online, the same on every network
    latency: float  # online, half a round trip for each round
    transfer: float  # online, bytes over the bandwidth
    offline: float  # if nothing arrives early

    @property
    def online(self) -> float:
        return self.compute + self.latency + self.transfer


@dataclass(frozen=True)
class RunPrediction:
    """One run on one network: every layer, the whole, and the two phases together."""

    network: Network
    measured: bool  # the network that the run was on: nothing is predicted
    layers: list[tuple[str, Prediction]]
    total: Prediction
    overlapped: float  # seconds of both phases if everything that may overlap does
    sequential: float  # if nothing does


def same(a: Network, b: Network) -> bool:
    """Do two profiles emulate the same, whatever their names?"""
    return (a.bandwidth_mbps, a.rtt_ms) == (b.bandwidth_mbps, b.rtt_ms)


def transfer_seconds(nbytes: int, on: Network) -> float:
    return 8 * nbytes / (on.bandwidth_mbps * 1e6) if on.bandwidth_mbps else 0.0


def latency_seconds(rounds: int, on: Network) -> float:
    return rounds * on.rtt_ms / 2000


def predict(account: dict[str, Any], own: Network, other: Network) -> Prediction:
    """What `account`, measured on `own`, would take on `other`. On `own` itself: what it took."""
    online, offline = account["online"], account["offline"]
    sent, dealt = max(online["bytes_sent"]), max(offline["bytes_to_party"])
    compute = online["seconds"] - latency_seconds(online["rounds"], own) - transfer_seconds(sent, own)
    preparing = offline["seconds"]
    if not same(own, other):
        # a layer can beat the formula by a little, since links and clocks are not exact; time is not negative
        compute = max(compute, 0.0)
        preparing = max(preparing, transfer_seconds(dealt, other))
    return Prediction(compute, latency_seconds(online["rounds"], other), transfer_seconds(sent, other), preparing)


def predict_run(report: dict[str, Any], own: Network, other: Network) -> RunPrediction:
    """The whole run and its layers. A report without layers counts as one layer."""
    layers = [(str(row["name"]), predict(row, own, other)) for row in report["layers"]]
    whole = predict(report, own, other)
    # No layer's correlations are taken to arrive during another one, so the layers add up.
    offline = sum(p.offline for _, p in layers) if layers else whole.offline
    measured = same(own, other)
    if measured:
        offline = report["offline"]["seconds"]
    total = Prediction(whole.compute, whole.latency, whole.transfer, offline)
    sequential = total.online + total.offline
    # Where bandwidth was limited, the measured offline seconds may be waiting, all of them.
    busy = 0.0 if own.bandwidth_mbps else report["offline"]["seconds"]
    dealt = transfer_seconds(max(report["offline"]["bytes_to_party"]), other)
    overlapped = sequential if measured else max(total.online + busy, dealt)
    return RunPrediction(other, measured, layers, total, overlapped, sequential)


def predict_all(report: dict[str, Any], own: Network) -> list[RunPrediction]:
    """On every built-in profile, the fastest for this run first."""
    runs = [predict_run(report, own, network(name)) for name in networks()]
    return sorted(runs, key=lambda run: (run.total.online, run.sequential))

"""Seconds of a program on a machine and a network, from its static cost alone.

Layer by layer the parties prepare (offline) and then run (online); the dealer works ahead of them. For a layer with
R rounds, S bytes sent by each party, d bytes dealt to each, processor seconds D (dealer), P and C (a party, offline and
online; `ditto.planning.machine`):

    online  = phase + R (round + rtt / 2) + S (sent + 8 / bandwidth) + C'
    offline = phase + max(P', (1 - a) max(D', 8 d / bandwidth), (2 P' + (1 - a) D') / cores)

- P' = P + d dealt, D' = D + 2 d dealt: what taking and sending the correlations costs besides.
- a is the part of the layer's correlations that came while the layer before was online: what that time and the buffers
  allow, and none for the first.
- C' = max(C, (2 C + a D' of the next layer) / cores less the time in which the processors wait for the network): both
  parties and the dealer share them.
- A round is one way (rtt / 2), since both parties send at once, as in `ditto.report.cost_model`.

Not predicted: client and coordinator, the job's start, other load, lost packets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditto.engine.program import Program
from ditto.net.config import DealerConfig
from ditto.net.emulation import Network
from ditto.planning.machine import Machine
from ditto.planning.work import Work
from ditto.report.cost_model import latency_seconds, transfer_seconds
from ditto.service.source import AHEAD

FEED = int(DealerConfig.model_fields["ahead_mb"].default) << 20


@dataclass(frozen=True)
class Demand:
    """What a layer, or a part of one, asks for: counts as the program states them, processor seconds by the machine."""

    rounds: int = 0
    sent: int = 0  # by each party
    dealt: int = 0  # to both
    deal: float = 0.0
    prepare: float = 0.0
    online: float = 0.0

    def __add__(self, other: Demand) -> Demand:
        return self._with(other, 1)

    def __sub__(self, other: Demand) -> Demand:
        return self._with(other, -1)

    def _with(self, other: Demand, sign: int) -> Demand:
        return Demand(
            self.rounds + sign * other.rounds,
            self.sent + sign * other.sent,
            self.dealt + sign * other.dealt,
            self.deal + sign * other.deal,
            self.prepare + sign * other.prepare,
            self.online + sign * other.online,
        )


@dataclass(frozen=True)
class Forecast:
    """Seconds of one layer, or of a job."""

    online: float
    offline: float


def demands(program: Program, machine: Machine) -> list[dict[str, Demand]]:
    """Of each layer by operation, as a job's report has them."""
    layers: list[dict[str, Demand]] = [{} for _ in program.layers]
    works: dict[tuple[int, str], Work] = {}
    for step in program.steps:
        works.setdefault((step.layer, step.label), Work()).add(step)
        cost = step.op.cost()
        before = layers[step.layer].get(step.label, Demand())
        layers[step.layer][step.label] = before + Demand(cost.rounds, cost.online, cost.dealer)
    for (layer, label), work in works.items():
        seconds = (machine.seconds(work, role) for role in ("deal", "prepare", "online"))
        layers[layer][label] += Demand(0, 0, 0, *seconds)
    return layers


def whole(parts: dict[str, Demand]) -> Demand:
    """A layer's operations together."""
    return sum(parts.values(), Demand())


def forecast(layers: Sequence[Demand], machine: Machine, network: Network) -> list[Forecast]:
    """Of each layer, in the formulas above."""
    found = []
    taken = 0.0  # of this layer's correlations: the part that is there already
    for here, after in zip(layers, [*layers[1:], None], strict=True):
        dealing = _dealing(here, machine)
        arriving = (1 - taken) * max(dealing, transfer_seconds(here.dealt // 2, network))
        taking = here.prepare + here.dealt / 2 * machine.dealt
        shared = (2 * taking + (1 - taken) * dealing) / machine.cores
        offline = machine.phase + max(taking, arriving, shared)
        waiting = latency_seconds(here.rounds, network) + transfer_seconds(here.sent, network)
        busy = here.online + here.rounds * machine.round + here.sent * machine.sent
        taken, beside = 0.0, 0.0
        if after is not None:
            taken = _ahead(after, machine, network, waiting + busy)
            beside = taken * _dealing(after, machine)
        contended = (2 * busy + beside) / machine.cores - waiting
        found.append(Forecast(machine.phase + waiting + max(busy, contended), offline))
    return found


def _dealing(layer: Demand, machine: Machine) -> float:
    return layer.deal + layer.dealt * machine.dealt


def _ahead(layer: Demand, machine: Machine, network: Network, seconds: float) -> float:
    """Which part of a layer's correlations arrives in so many seconds in which nobody takes any."""
    link, dealer = transfer_seconds(layer.dealt // 2, network), _dealing(layer, machine)
    held = AHEAD if link > dealer else AHEAD + FEED
    slowest = max(link, dealer)
    return min(1.0, 2 * held / max(1, layer.dealt), seconds / slowest if slowest else 1.0)


def total(layers: Sequence[Forecast]) -> Forecast:
    return Forecast(sum(f.online for f in layers), sum(f.offline for f in layers))

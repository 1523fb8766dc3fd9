"""Seconds of a program on a machine and a network, from its static cost alone.

Layer by layer the parties prepare (offline) and then run (online); the dealer works all the time, ahead of them. That
is what each phase takes by itself; `overlapping` says what a job takes, whose layers are prepared ahead. For a layer
with R rounds, S bytes sent by each party, d bytes dealt to each, processor seconds D (dealer), P and C (a party,
offline and online; `ditto.planning.machine`):

- A party waits R rtt / 2 + S 8 / bandwidth online, and is busy C + R round + S sent. A round is one way (rtt / 2),
  since both parties send at once, as in `ditto.report.cost_model`. Openings go in pieces, so it computes while others
  are under way: HIDDEN of the shorter one of S 8 / bandwidth and C + S sent is not waited for. Offline it is busy P.
- The stream: the dealer deals for D; beside that it sends d to each party, and each party's reading thread receives d
  when it comes, in whatever phase the party is then: d dealt at each of these four ends. So what is dealt while the
  parties run is received while they run, and is no part of a later layer's offline phase. The stream's longest thread
  takes max(D, d dealt), all of them together `beside` times that, on average over the program.
- While the parties wait, the stream has all processors; while they are busy, their two threads and those of the stream
  share `cores` alike, until the buffers are full or all is dealt: so long every thread is at
  min(1, cores / (2 + beside)) of its speed, then the parties at min(1, cores / 2).
- What is dealt follows the link to a party at its bandwidth, as far as the party's buffer lets it.
- Offline a party works on what is there while the rest is dealt and arrives; of the first layer it takes nothing
  before all has arrived (the largest step of embeddings is dealt as a whole, and small pieces are gathered).
- Dealing begins when a job is opened, and the client shares its inputs only then: the dealer is `lead` seconds ahead
  when the first layer is prepared, and by half a round trip more, which its first message takes.
- The first layer's offline phase begins with one message each way, of the parties' common key: rtt / 2.
- Each phase of a layer takes `phase` more.

Not predicted: client and coordinator, the job's start before that, other load, lost packets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ditto.engine.program import Program
from ditto.net.config import DealerConfig
from ditto.net.emulation import Network
from ditto.planning.machine import Machine
from ditto.planning.work import Work
from ditto.report.cost_model import latency_seconds, transfer_seconds
from ditto.service.source import AHEAD

HIDDEN = 0.5  # not derived: on wan, of BERT-base's layers with and without pieces
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
    """Of each layer, by the rules above."""
    return _forecast(layers, machine, network, _Stream(layers, machine, network))


def _forecast(layers: Sequence[Demand], machine: Machine, network: Network, stream: _Stream) -> list[Forecast]:
    found = []
    for i, layer in enumerate(layers):
        offline = stream.take(i, layer.prepare)
        sending, computing = transfer_seconds(layer.sent, network), layer.online + layer.sent * machine.sent
        waiting = latency_seconds(layer.rounds, network) + sending - HIDDEN * min(sending, computing)
        online = stream.work(waiting, computing + layer.rounds * machine.round)
        found.append(Forecast(machine.phase + online, machine.phase + offline))
    return found


def overlapping(layers: Sequence[Demand], machine: Machine, network: Network) -> float:
    """From the start to the last opening, when a layer is prepared while the one before it runs, as jobs do it.

    The forecasts above, one beside the other; but never less than what the processors are busy for in all, without what
    was dealt before the job's inputs were there.
    """
    stream = _Stream(layers, machine, network)
    prepared = began = ran = 0.0
    busy = -stream.before
    for layer, found in zip(layers, _forecast(layers, machine, network, stream), strict=True):
        prepared = max(prepared, began) + found.offline
        began = max(prepared, ran)
        ran = began + found.online
        party = layer.prepare + layer.online + layer.rounds * machine.round + layer.sent * machine.sent
        busy += 2 * party + _stream_work(layer, machine)[1]
    return max(ran, busy / machine.cores)


def _stream_work(layer: Demand, machine: Machine) -> tuple[float, float]:
    """Of dealing, sending and receiving: seconds of the longest thread, and of all of them together."""
    end = layer.dealt / 2 * machine.dealt
    return max(layer.deal, end), layer.deal + 4 * end


class _Stream:
    """What is dealt and what has arrived, as a fluid: bytes for each party. Dealing is timed by the longest thread."""

    def __init__(self, layers: Sequence[Demand], machine: Machine, network: Network) -> None:
        self._ends = list(itertools.accumulate(layer.dealt / 2 for layer in layers))
        works = [_stream_work(layer, machine) for layer in layers]
        self._left = [longest for longest, _ in works]  # seconds of dealing
        self._beside = sum(every for _, every in works) / (sum(self._left) or 1.0) or 1.0
        self._byte, self._latency = transfer_seconds(1_000_000, network) / 1e6, latency_seconds(1, network)
        busy = self._beside, 2.0, 2 + self._beside
        self._idle, self._alone, self._shared = (min(1.0, machine.cores / threads) for threads in busy)
        self._cores = machine.cores
        self._layer = 0  # that is being dealt
        self._dealt = self._arrived = self._taken = 0.0
        self.before = self._beside * self._deal((machine.lead + self._latency) * self._idle)  # the first layer's phase
        self._arrive(machine.lead)

    def work(self, waiting: float, busy: float) -> float:
        """Seconds in which the parties are busy and wait for each other so long."""
        able = waiting * self._idle + busy
        part = self._deal(able) / able if able else 0.0
        seconds = waiting + busy * (part / self._shared + (1 - part) / self._alone)
        self._arrive(seconds)
        return seconds

    def take(self, layer: int, busy: float) -> float:
        """Seconds that the parties need to have a layer's correlations and to prepare them."""
        end, self._taken = self._ends[layer], self._ends[layer]
        if layer == 0:
            key = self.work(self._latency, 0.0)
            return key + self._fetch(end, layer) + self.work(0.0, busy)
        dealing = sum(self._left[self._layer : layer + 1])
        if dealing > busy:
            seconds = max(dealing, (2 * busy + self._beside * dealing) / self._cores)
            self._deal(dealing)
            self._arrive(seconds)
        else:
            seconds = self.work(0.0, busy)
        return seconds + self._fetch(end, layer)

    def _fetch(self, end: float, layer: int) -> float:
        """Until all of a layer is there, parties idle."""
        dealing = sum(self._left[self._layer : layer + 1])
        seconds = max(dealing / self._idle, (end - self._arrived) * self._byte)
        self._deal(seconds * self._idle)
        self._arrive(seconds)
        return seconds

    def _deal(self, seconds: float) -> float:
        """Deal for so long, or until the buffers are full; returns for how long. A layer's bytes come evenly."""
        spent, full = 0.0, self._reach(seconds) + FEED
        while self._layer < len(self._ends):
            left, rest = self._left[self._layer], self._ends[self._layer] - self._dealt
            share = (full - self._dealt) / rest if rest > 0 else 1.0
            share = max(0.0, min(share, (seconds - spent) / left if left > 0 else 1.0))
            if share < 1.0:
                self._dealt += share * rest
                self._left[self._layer] -= share * left
                return spent + share * left
            spent += left
            self._dealt, self._left[self._layer] = self._ends[self._layer], 0.0
            self._layer += 1
        return spent

    def _arrive(self, seconds: float) -> None:
        self._arrived = max(self._arrived, min(self._dealt, self._reach(seconds)))

    def _reach(self, seconds: float) -> float:
        """How far the link and the party's buffer let bytes arrive."""
        buffered = self._taken + AHEAD
        return min(buffered, self._arrived + seconds / self._byte) if self._byte else buffered


def total(layers: Sequence[Forecast]) -> Forecast:
    return Forecast(sum(f.online for f in layers), sum(f.offline for f in layers))

"""What a job cost, added up at the client while the coordinator reports step after step.

A step is one phase of one layer, or of a whole later stage, at both parties. Its message brings a ledger from each
party (a row for each operation) and, for a layer that ran online, the moments of its rounds. Every step is entered into
the account of the job, that of its layer, and those of its operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ditto.client.status import traffic
from ditto.engine.ledger import LayerTimes, Phase, Row, Spent, total
from ditto.errors import DittoError
from ditto.names import PARTIES
from ditto.net.messages import check_seconds, ledger_of, phase_of, times_of
from ditto.wire import control_pb2

_PEER = "coordinator"  # the parties' measurements come through it


@dataclass(frozen=True)
class Step:
    """One phase of one layer, or of a whole later stage. Lists are by party."""

    layer: int
    name: str
    phase: Phase
    seconds: float  # the slower party's, everything included
    ledgers: list[list[Row]]
    times: list[LayerTimes]  # empty where nobody recorded them

    @classmethod
    def of(cls, done: control_pb2.LayerDone) -> Step:
        """Raises DittoError unless both parties' measurements are there and can be ones."""
        if len(done.ledgers) != len(PARTIES) or len(done.times) not in (0, len(PARTIES)):
            raise DittoError(f"{_PEER} sent the measurements of {len(done.ledgers)} parties", peer=_PEER)
        check_seconds(_PEER, done.seconds)
        phase = phase_of(done.phase, _PEER)
        ledgers = [ledger_of(ledger, phase, _PEER) for ledger in done.ledgers]
        return cls(done.layer, done.name, phase, done.seconds, ledgers, [times_of(t, _PEER) for t in done.times])

    def time(self) -> Spent:
        """Its seconds, and the waiting of the party whose operations took longer."""
        return Spent(seconds=self.seconds, waiting=slower([total(rows) for rows in self.ledgers]).waiting)

    def operations(self) -> dict[str, list[Spent]]:
        """What each party spent on each operation; nothing where it does not name it."""
        by_party = [{row.operation: row for row in rows} for rows in self.ledgers]
        names = dict.fromkeys(name for rows in by_party for name in rows)
        return {name: [rows.get(name, Spent()) for rows in by_party] for name in names}


def slower(by_party: Sequence[Spent]) -> Spent:
    """What the party spent that took longer."""
    return max(by_party, key=lambda spent: spent.seconds)


# Accounts -----------------------------------------------------------------------------------------


@dataclass
class Online:
    """Seconds, and the waiting in them, are the slower party's; rounds are the same on both sides."""

    seconds: float = 0.0
    waiting: float = 0.0
    rounds: int = 0
    bytes_sent: list[int] = field(default_factory=lambda: [0, 0])  # by party

    def add_time(self, time: Spent) -> None:
        self.seconds += time.seconds
        self.waiting += time.waiting

    def add_counts(self, by_party: Sequence[Spent]) -> None:
        self.rounds += max(spent.rounds for spent in by_party)
        for party, spent in enumerate(by_party):
            self.bytes_sent[party] += spent.bytes_sent


@dataclass
class Offline:
    """Seconds are the slower party's."""

    seconds: float = 0.0
    bytes_to_party: list[int] = field(default_factory=lambda: [0, 0])  # from the dealer

    def add_time(self, time: Spent) -> None:
        self.seconds += time.seconds

    def add_counts(self, by_party: Sequence[Spent]) -> None:
        for party, spent in enumerate(by_party):
            self.bytes_to_party[party] += spent.bytes_from_dealer


@dataclass
class Account:
    """What the job, a layer or an operation cost so far."""

    online: Online = field(default_factory=Online)
    offline: Offline = field(default_factory=Offline)

    def of(self, phase: Phase) -> Online | Offline:
        return self.online if phase == "online" else self.offline


@dataclass
class Report:
    """The accounts of one job, and its document: what `infer --json` shows of it."""

    seconds: float = 0.0  # from the client's inputs to the end, as the coordinator saw it
    stock: bool = False  # its correlations were dealt before, and in stock
    traffic: dict[str, Any] = field(default_factory=dict)  # by party, counted at the frame
    total: Account = field(default_factory=Account)
    layers: dict[tuple[int, str], Account] = field(default_factory=dict)  # by number and name
    operations: dict[str, Account] = field(default_factory=dict)
    recorded: list[Step] = field(default_factory=list)  # those with the moments of their rounds

    def add(self, done: control_pb2.LayerDone) -> dict[str, Any]:
        """Enter a step into all its accounts. Returns it for who follows the job: what each party's rows say, and the
        figures of the layer's phase. Raises DittoError for measurements that are missing or make no sense."""
        step = Step.of(done)
        if step.times:
            self.recorded.append(step)
        layer = self.layers.setdefault((step.layer, step.name), Account())
        for account in (self.total, layer):
            account.of(step.phase).add_time(step.time())
        for name, by_party in step.operations().items():
            operation = self.operations.setdefault(name, Account())
            operation.of(step.phase).add_time(slower(by_party))
            for account in (self.total, layer, operation):
                account.of(step.phase).add_counts(by_party)
        parties = [[row.to_json() for row in rows] for rows in step.ledgers]
        shown = {"layer": step.layer, "name": step.name, "phase": step.phase, "parties": parties}
        return shown | asdict(layer.of(step.phase))

    def finish(self, done: control_pb2.Done) -> None:
        self.seconds = done.seconds
        self.traffic = dict(zip(PARTIES, map(traffic, done.traffic), strict=False))

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.total),
            "seconds": self.seconds,
            "layers": [{"layer": n, "name": name, **asdict(account)} for (n, name), account in self.layers.items()],
            "operations": [{"operation": name, **asdict(account)} for name, account in self.operations.items()],
            "traffic": self.traffic,
            "jobs": 1,
            "stock": self.stock,
            "stocked_jobs": int(self.stock),
            "rounds_timeline": self.timeline(),
        }

    def timeline(self) -> dict[str, Any]:
        """Every round of the party that was online longer, by its clock alone: seconds since it began the first layer
        online, to the microsecond. Rounds are columns, since there may be more than a thousand."""
        online = [sum(step.times[party].seconds for step in self.recorded) for party in range(len(PARTIES))]
        party = online.index(max(online))
        layers = [{"layer": step.layer, "name": step.name, **_moments(step.times[party])} for step in self.recorded]
        return {"party": party, "layers": layers}


def _moments(times: LayerTimes) -> dict[str, Any]:
    return {
        "offline": {"start": round(times.offline_start, 6), "seconds": round(times.offline_seconds, 6)},
        "online": {"start": round(times.start, 6), "seconds": round(times.seconds, 6)},
        "rounds": {
            "operation": [r.operation for r in times.rounds],
            "start": [round(r.start, 6) for r in times.rounds],
            "waiting": [round(r.waiting, 6) for r in times.rounds],
            "bytes_sent": [r.bytes_sent for r in times.rounds],
        },
    }

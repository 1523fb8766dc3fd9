"""What an inference cost: rounds, bytes and seconds by phase, layer and operation, and when each round was."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """Sums for one (phase, layer, operation). Bytes are payload, as counted at the channel."""

    seconds: float = 0.0
    waiting: float = 0.0  # of the seconds: between sending and having the peer's bytes
    rounds: int = 0
    bytes_sent: int = 0
    bytes_from_dealer: int = 0


@dataclass(frozen=True)
class Round:
    """One opening at one party: when its bytes were ready to send, and how long until the peer's were there."""

    operation: str
    start: float
    waiting: float
    bytes_sent: int  # payload


@dataclass
class LayerTimes:
    """When one party did what in one layer: seconds of its own monotonic clock since it began the first layer online.

    The first layer's offline part begins before 0. Two parties' clocks have no common zero: durations may be
    compared, moments may not. Between two rounds, and after the last one, the party computes.
    """

    offline_start: float
    offline_seconds: float
    start: float
    seconds: float = 0.0
    rounds: list[Round] = field(default_factory=list)


class Ledger:
    """One party's account of one job."""

    def __init__(self) -> None:
        self.rows: defaultdict[tuple[str, int, str], Row] = defaultdict(Row)
        self.times: dict[int, LayerTimes] = {}  # by layer, once it runs online

    def add(
        self,
        phase: str,
        layer: int,
        operation: str,
        *,
        seconds: float = 0.0,
        waiting: float = 0.0,
        rounds: int = 0,
        bytes_sent: int = 0,
        bytes_from_dealer: int = 0,
    ) -> None:
        row = self.rows[phase, layer, operation]
        row.seconds += seconds
        row.waiting += waiting
        row.rounds += rounds
        row.bytes_sent += bytes_sent
        row.bytes_from_dealer += bytes_from_dealer

    def to_json(self, phase: str | None = None, layer: int | None = None) -> list[dict[str, Any]]:
        """Rows as dictionaries, optionally of one phase and layer."""
        return [
            {"phase": p, "layer": at, "operation": operation, **vars(row)}
            for (p, at, operation), row in self.rows.items()
            if phase in (None, p) and layer in (None, at)
        ]

    def by_operation(self, phase: str) -> list[dict[str, Any]]:
        """Rows of one phase as dictionaries, all layers together."""
        operations = dict.fromkeys(operation for p, _, operation in self.rows if p == phase)
        return [{"phase": phase, "operation": name, **vars(self.total(phase, name))} for name in operations]

    def total(self, phase: str, operation: str | None = None) -> Row:
        total = Row()
        for (p, _, name), row in self.rows.items():
            if p == phase and operation in (None, name):
                total.seconds += row.seconds
                total.waiting += row.waiting
                total.rounds += row.rounds
                total.bytes_sent += row.bytes_sent
                total.bytes_from_dealer += row.bytes_from_dealer
        return total

"""What an inference cost: rounds, bytes and seconds by phase, layer and operation, and when each round was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["offline", "online"]


@dataclass
class Spent:
    """Sums at one party. Bytes are payload, as counted at the channel."""

    seconds: float = 0.0
    waiting: float = 0.0  # of the seconds: for the peer's bytes
    rounds: int = 0
    bytes_sent: int = 0
    bytes_from_dealer: int = 0

    def include(self, other: Spent) -> None:
        self.seconds += other.seconds
        self.waiting += other.waiting
        self.rounds += other.rounds
        self.bytes_sent += other.bytes_sent
        self.bytes_from_dealer += other.bytes_from_dealer


@dataclass(kw_only=True)
class Row(Spent):
    """What one operation cost in one phase of one layer, or of several (`layer` None)."""

    phase: Phase
    layer: int | None
    operation: str

    def to_json(self) -> dict[str, Any]:
        names = {"phase": self.phase, "layer": self.layer, "operation": self.operation}
        return {name: value for name, value in (names | vars(self)).items() if value is not None}


def total(rows: Iterable[Spent]) -> Spent:
    sums = Spent()
    for row in rows:
        sums.include(row)
    return sums


@dataclass(frozen=True)
class Round:
    """One opening at one party: when it first waited for the peer's bytes, and how long for all of them.

    Pieces of a large one are waited for in turn, and what came by then is computed with in between.
    """

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
    """One party's account of one job. The two phases may be entered by two threads, each by one."""

    def __init__(self) -> None:
        self._rows: dict[Phase, dict[tuple[int, str], Row]] = {"offline": {}, "online": {}}
        self.times: dict[int, LayerTimes] = {}  # by layer, once it runs online

    def add(
        self,
        phase: Phase,
        layer: int,
        operation: str,
        *,
        seconds: float = 0.0,
        waiting: float = 0.0,
        rounds: int = 0,
        bytes_sent: int = 0,
        bytes_from_dealer: int = 0,
    ) -> None:
        row = self._rows[phase].get((layer, operation))
        if row is None:
            row = self._rows[phase][layer, operation] = Row(phase=phase, layer=layer, operation=operation)
        row.seconds += seconds
        row.waiting += waiting
        row.rounds += rounds
        row.bytes_sent += bytes_sent
        row.bytes_from_dealer += bytes_from_dealer

    def rows(self, phase: Phase, layer: int) -> list[Row]:
        """The operations of one phase of one layer, in the order in which they came."""
        return [row for row in self._of(phase) if row.layer == layer]

    def by_operation(self, phase: Phase) -> list[Row]:
        """The operations of one phase, all layers together."""
        summed: dict[str, Row] = {}
        for row in self._of(phase):
            summed.setdefault(row.operation, Row(phase=phase, layer=None, operation=row.operation)).include(row)
        return list(summed.values())

    def total(self, phase: Phase) -> Spent:
        return total(self._of(phase))

    def _of(self, phase: Phase) -> Iterable[Row]:
        return self._rows[phase].values()

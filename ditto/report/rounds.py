"""The rounds of one party, read from a report's `rounds_timeline` (ditto.client.report.Report.timeline).

Moments are seconds of that party's clock since it began the first layer online.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Opening:
    """One round of a layer: computing from `since` to `start`, then waiting."""

    operation: str
    since: float
    start: float
    waiting: float
    bytes_sent: int

    @property
    def computing(self) -> float:
        return self.start - self.since

    @property
    def end(self) -> float:
        return self.start + self.waiting


@dataclass(frozen=True)
class Layer:
    """When a layer was prepared and run, and its rounds."""

    number: int
    name: str
    offline_start: float
    offline_seconds: float
    start: float
    seconds: float
    openings: list[Opening]

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        offline, online, rounds = row["offline"], row["online"], row["rounds"]
        openings, since = [], online["start"]
        columns = (rounds[key] for key in ("operation", "start", "waiting", "bytes_sent"))
        for operation, start, waiting, sent in zip(*columns, strict=True):
            openings.append(Opening(operation, since, start, waiting, sent))
            since = openings[-1].end
        return cls(
            row["layer"], str(row["name"]), offline["start"], offline["seconds"], online["start"], online["seconds"],
            openings,
        )  # fmt: skip

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def last(self) -> float:
        """The end of its last round: from here on it computes."""
        return self.openings[-1].end if self.openings else self.start

    @property
    def waiting(self) -> float:
        return round(float(sum(opening.waiting for opening in self.openings)), 6)

    @property
    def computing(self) -> float:
        return round(float(self.seconds) - self.waiting, 6)


def layers(costs: dict[str, Any]) -> list[Layer]:
    return [Layer.of(row) for row in costs["rounds_timeline"]["layers"]]

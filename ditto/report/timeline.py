"""The page's timeline: one job as one party saw it, round by round, computing and waiting."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ditto.report.drawing import Brackets, Mark, Scale, Span, Tick, axis, brackets
from ditto.report.pieces import Figure, count, milliseconds, nbytes, seconds
from ditto.report.rounds import Layer, Opening, layers


@dataclass(frozen=True)
class Bar:
    """A layer in the line of the whole job: prepared, run, and when it computed while it ran."""

    layer: Layer
    offline: Span
    online: Span
    computing: list[Span]


@dataclass(frozen=True)
class Round:
    """One round in its layer's line."""

    opening: Opening
    computing: Span
    waiting: Span


@dataclass(frozen=True)
class Lane:
    """A layer from its own start, and its figures: seconds computing and waiting, rounds, bytes."""

    layer: Layer
    rounds: list[Round]
    rest: Span  # computing after the last round
    figures: list[Figure]

    @property
    def rest_seconds(self) -> float:
        return self.layer.end - self.layer.last


@dataclass(frozen=True)
class Longest:
    """The longest layer: its operations, and figures of each round."""

    lane: Lane
    operations: Brackets
    rows: list[tuple[str, list[Figure]]]


@dataclass(frozen=True)
class Timeline:
    party: int
    jobs: int  # that the other sections add up; this one shows the first
    bars: list[Bar]
    names: Brackets
    axis: list[Tick]
    lanes: list[Lane]
    lanes_axis: list[Tick]
    longest: Longest


def timeline(costs: dict[str, Any]) -> Timeline | None:
    """None for a report that has no layer which ran online."""
    found = [layer for layer in layers(costs) if layer.seconds > 0]
    if not found:
        return None
    start, end = min(layer.offline_start for layer in found), max(layer.end for layer in found)
    whole = Scale(start, end - start)
    longest = max(found, key=lambda layer: layer.seconds)
    lanes = [_lane(layer, longest.seconds) for layer in found]
    return Timeline(
        party=costs["rounds_timeline"]["party"],
        jobs=costs["jobs"],
        bars=[_bar(layer, whole) for layer in found],
        names=brackets([_mark(layer.name, whole.span(layer.start, layer.end)) for layer in found]),
        axis=axis(start, end),
        lanes=lanes,
        lanes_axis=axis(0, longest.seconds),
        longest=_longest(lanes[found.index(longest)]),
    )


def _mark(name: str, span: Span) -> Mark:
    return Mark(span.at, span.at + span.wide, name)


def _bar(layer: Layer, scale: Scale) -> Bar:
    computing = [scale.span(opening.since, opening.start) for opening in layer.openings]
    return Bar(
        layer,
        offline=scale.span(layer.offline_start, layer.offline_start + layer.offline_seconds),
        online=scale.span(layer.start, layer.end),
        computing=[*computing, scale.span(layer.last, layer.end)],
    )


def _lane(layer: Layer, full: float) -> Lane:
    """On a line that stands for `full` seconds."""
    scale = Scale(layer.start, full)
    rounds = [Round(o, scale.span(o.since, o.start), scale.span(o.start, o.end)) for o in layer.openings]
    sent = sum(o.bytes_sent for o in layer.openings)
    figures = [seconds(layer.computing), seconds(layer.waiting), count(len(rounds)), nbytes(sent)]
    return Lane(layer, rounds, scale.span(layer.last, layer.end), figures)


def _longest(lane: Lane) -> Longest:
    layer, marks = lane.layer, []
    scale = Scale(layer.start, layer.seconds)
    for operation, group in groupby(layer.openings, lambda opening: opening.operation):
        run = list(group)
        marks.append(_mark(operation, scale.span(run[0].since, run[-1].end)))
    rows = []
    for i, o in enumerate(layer.openings, 1):
        times = (milliseconds(round(value, 6)) for value in (o.start - layer.start, o.computing, o.waiting))
        rows.append((f"{i} {o.operation}", [*times, nbytes(o.bytes_sent)]))
    return Longest(lane, brackets(marks), rows)

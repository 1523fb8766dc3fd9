"""`--trace FILE`: the timeline of a report as a trace, for Perfetto (ui.perfetto.dev) and chrome://tracing.

The file is a JSON object of the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). The party is a process with four
threads, and on each of them nothing overlaps: its offline work and its online work, an event for each layer; and,
inside of the latter, its computing and its waiting, an event for each round. These are complete events ("X"), in whole
microseconds; metadata events ("M") name the process and its threads. 0 is when the party began the first layer's
offline part. Like the page, a trace holds costs and names, no text, answer or share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import ditto
from ditto.report.rounds import Layer, layers

Event = dict[str, Any]


class Thread(IntEnum):
    """In the order in which they are shown. A thread whose number is the process's would be called its main thread."""

    OFFLINE = 11
    ONLINE = 12
    COMPUTING = 13
    WAITING = 14


_NAMES = {
    Thread.OFFLINE: "offline",
    Thread.ONLINE: "online",
    Thread.COMPUTING: "online, computing",
    Thread.WAITING: "online, waiting",
}


def render(costs: dict[str, Any]) -> str:
    return json.dumps(trace(costs)) + "\n"


def trace(costs: dict[str, Any]) -> dict[str, Any]:
    """The trace of a report's timeline, which is of its first job."""
    party, found = costs["rounds_timeline"]["party"], layers(costs)
    zero = min((layer.offline_start for layer in found), default=0.0)
    process = {"pid": party + 1}  # 0 is the idle process
    dealt: dict[int, int] = {}
    if costs["jobs"] == 1:  # the rows of layers add up all jobs
        dealt = {row["layer"]: row["offline"]["bytes_to_party"][party] for row in costs["layers"]}
    events = [event for layer in found for event in _layer(layer, zero, dealt.get(layer.number))]
    return {
        "displayTimeUnit": "ms",
        "otherData": {"version": f"ditto {ditto.__version__}"}
        | {key: costs[key] for key in ("model", "architecture", "preset", "network", "texts", "seq", "jobs")},
        "traceEvents": [process | event for event in (*_metadata(party), *events)],
    }


def _metadata(party: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "args": {"name": f"party {party}"}}
    for thread, name in _NAMES.items():
        yield {"ph": "M", "tid": int(thread), "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "tid": int(thread), "name": "thread_sort_index", "args": {"sort_index": int(thread)}}


def _layer(layer: Layer, zero: float, dealt: int | None) -> Iterator[Event]:
    """A layer's offline part (and its bytes from the dealer, if known), its online part, and the rounds in that.

    Moments and durations of a timeline are rounded each for itself, so that a round may seem to begin a microsecond
    before the one before it ended. It begins when that one ended.
    """

    def at(moment: float) -> int:
        return round(1e6 * (moment - zero))

    offline = at(layer.offline_start), at(layer.offline_start + layer.offline_seconds)
    known = {} if dealt is None else {"bytes_from_dealer": dealt}
    yield _event(Thread.OFFLINE, layer.name, *offline, {"layer": layer.number} | known)
    now = at(layer.start)
    for i, opening in enumerate(layer.openings, 1):
        args = {"layer": layer.number, "round": i, "bytes_sent": opening.bytes_sent}
        sent = max(at(opening.start), now)
        received = max(at(opening.end), sent)
        yield _event(Thread.COMPUTING, opening.operation, now, sent, args)
        yield _event(Thread.WAITING, opening.operation, sent, received, args)
        now = received
    end = max(at(layer.end), now)
    yield _event(Thread.COMPUTING, "after the last round", now, end, {"layer": layer.number})
    sums = {"rounds": len(layer.openings), "bytes_sent": sum(o.bytes_sent for o in layer.openings)}
    yield _event(Thread.ONLINE, layer.name, at(layer.start), end, {"layer": layer.number} | sums)


def _event(thread: Thread, name: str, start: int, end: int, args: dict[str, Any]) -> Event:
    phase = "offline" if thread is Thread.OFFLINE else "online"
    return {
        "ph": "X", "tid": int(thread), "cat": phase, "name": name, "ts": start, "dur": end - start, "args": args,
    }  # fmt: skip

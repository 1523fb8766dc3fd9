"""`--trace`: the file read back, against the timeline that it was made of."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from ditto.report.trace import Thread, render, trace

Event = dict[str, Any]


def read(made: dict[str, Any], thread: Thread, layer: int | None = None) -> list[Event]:
    """The complete events of one thread, of one layer or all."""
    events = (event for event in made["traceEvents"] if event["ph"] == "X" and event["tid"] == thread)
    return [event for event in events if layer in (None, event["args"]["layer"])]


def end(event: Event) -> int:
    return int(event["ts"] + event["dur"])


def check_trace(made: dict[str, Any], costs: dict[str, Any]) -> None:
    """Names, order, nesting, durations and bytes are those of the timeline.

    Moments and durations of a timeline are rounded to a microsecond each for itself, so that sums over a layer's rounds
    may differ by one for each of them, and one for the layer.
    """
    timeline = costs["rounds_timeline"]
    named = {event["tid"]: event["args"]["name"] for event in made["traceEvents"] if event["name"] == "thread_name"}
    assert named == {11: "offline", 12: "online", 13: "online, computing", 14: "online, waiting"}
    (process,) = (event for event in made["traceEvents"] if event["name"] == "process_name")
    assert process["args"]["name"] == f"party {timeline['party']}"
    assert {event["pid"] for event in made["traceEvents"]} == {process["pid"]}
    assert all(isinstance(e[key], int) and e[key] >= 0 for t in Thread for e in read(made, t) for key in ("ts", "dur"))
    for thread in Thread:
        events = read(made, thread)
        assert all(end(a) <= b["ts"] for a, b in pairwise(events)), "events of one thread follow one another"
    zero = min(row["offline"]["start"] for row in timeline["layers"])
    assert len(read(made, Thread.ONLINE)) == len(timeline["layers"])
    for row in timeline["layers"]:
        check_layer(made, row, zero)


def check_layer(made: dict[str, Any], row: dict[str, Any], zero: float) -> None:
    rounds, count = row["rounds"], len(row["rounds"]["start"])
    computing, waiting = (read(made, thread, row["layer"]) for thread in (Thread.COMPUTING, Thread.WAITING))
    (offline,), (online,) = (read(made, thread, row["layer"]) for thread in (Thread.OFFLINE, Thread.ONLINE))
    assert offline["name"] == online["name"] == row["name"]
    assert online["args"]["rounds"] == len(waiting) == len(computing) - 1 == count
    assert online["args"]["bytes_sent"] == sum(rounds["bytes_sent"])
    assert offline["ts"] == pytest.approx(1e6 * (row["offline"]["start"] - zero), abs=1)
    assert offline["dur"] == pytest.approx(1e6 * row["offline"]["seconds"], abs=1)
    assert online["dur"] == pytest.approx(1e6 * row["online"]["seconds"], abs=1)
    inside = sorted([*computing, *waiting], key=lambda event: (event["ts"], end(event)))
    assert online["ts"] == inside[0]["ts"] and end(inside[-1]) == end(online)
    assert all(end(a) == b["ts"] for a, b in pairwise(inside)), "it computes or waits, and nothing else"
    assert [event["name"] for event in waiting] == [e["name"] for e in computing[:-1]] == rounds["operation"]
    assert [event["args"]["bytes_sent"] for event in waiting] == rounds["bytes_sent"]
    waited = 1e6 * sum(rounds["waiting"])
    assert sum(event["dur"] for event in waiting) == pytest.approx(waited, abs=count + 1)
    computed = 1e6 * row["online"]["seconds"] - waited
    assert sum(event["dur"] for event in computing) == pytest.approx(computed, abs=count + 2)


def layer(number: int, start: float, starts: list[float], waits: list[float], seconds: float) -> dict[str, Any]:
    return {
        "layer": number, "name": f"layer {number}", "offline": {"start": start - 0.5, "seconds": 0.25},
        "online": {"start": start, "seconds": seconds},
        "rounds": {
            "operation": [f"op {i // 2}" for i in range(len(starts))], "start": starts, "waiting": waits,
            "bytes_sent": [100 * number + i for i in range(len(starts))],
        },
    }  # fmt: skip


def costs(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A report with this timeline; everything that may hold a text does."""
    rows = [{"layer": row["layer"], "offline": {"bytes_to_party": [7, 1 << 33]}} for row in layers]
    return {
        "model": "tiny", "architecture": "BertModel", "preset": "ditto", "network": "wan", "texts": 1, "seq": 16,
        "jobs": 1, "layers": rows, "rounds_timeline": {"party": 1, "layers": layers},
        "output": ["a secret answer", 0.123456789], "prompts": ["a secret question"], "plaintext_output": ["secret"],
    }  # fmt: skip


def test_a_trace_is_the_timeline() -> None:
    two = [layer(0, 0.0, [0.25, 0.75], [0.125, 0.5], 1.5), layer(1, 2.5, [2.5, 2.75, 3.0], [0.0, 0.25, 0.5], 2.0)]
    made = json.loads(render(costs(two)))
    check_trace(made, costs(two))
    first = read(made, Thread.ONLINE)[0]
    assert (first["ts"], first["dur"]) == (500_000, 1_500_000), "0 is the first layer's offline part"
    assert [(e["ts"], e["dur"]) for e in read(made, Thread.WAITING, 0)] == [(750_000, 125_000), (1_250_000, 500_000)]
    assert sum(e["dur"] for e in read(made, Thread.COMPUTING, 0)) == 875_000
    assert [e["args"]["bytes_from_dealer"] for e in read(made, Thread.OFFLINE)] == [1 << 33, 1 << 33]
    assert made["otherData"]["preset"] == "ditto" and made["displayTimeUnit"] == "ms"


def test_no_text_is_inside() -> None:
    text = render(costs([layer(0, 0.0, [0.25], [0.125], 1.0)]))
    assert "secret" not in text and "0.1234" not in text


def test_rounded_moments_do_not_overlap() -> None:
    """Every moment and duration rounded for itself, as a timeline has them: the next round seems to begin too early."""
    starts, waits = [0.0000016, 0.0000032, 0.0000058], [0.0000016, 0.0000026, 0.0000016]
    rounded = layer(0, 0.0, [round(s, 6) for s in starts], [round(w, 6) for w in waits], round(0.0000074, 6))
    assert rounded["rounds"]["start"][0] + rounded["rounds"]["waiting"][0] > rounded["rounds"]["start"][1]
    check_trace(trace(costs([rounded])), costs([rounded]))


def test_of_several_jobs_the_dealers_bytes_are_left_out() -> None:
    """The rows of the layers add up all jobs, the timeline is the first one's."""
    made = trace(costs([layer(0, 0.0, [0.25], [0.125], 1.0)]) | {"jobs": 2})
    assert "bytes_from_dealer" not in read(made, Thread.OFFLINE)[0]["args"]


def test_a_layer_without_rounds_and_no_layer_at_all() -> None:
    quiet = [layer(0, 0.0, [], [], 0.5)]
    check_trace(trace(costs(quiet)), costs(quiet))
    assert not [event for event in trace(costs([]))["traceEvents"] if event["ph"] == "X"]

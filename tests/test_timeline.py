"""The timeline of rounds: what a party records, what the client makes of it, and how it is drawn."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from engine import run_mpc
from test_report import summary

from ditto.cli import report
from ditto.client.report import Report
from ditto.engine.ledger import LayerTimes
from ditto.engine.program import Builder, Program
from ditto.report import drawing
from ditto.report.drawing import axis
from ditto.report.page import render
from ditto.report.timeline import timeline
from ditto.wire import control_pb2, party_pb2

NOTHING = [party_pb2.Ledger(), party_pb2.Ledger()]  # of two parties


def two_layers() -> Program:
    """Three openings in two layers, and an operation without one."""
    b = Builder()
    b.layer("first")
    b.label("a")
    (x,) = b.open(b.input("x", 32, 8, (2, 3), 4.0))
    b.layer("second")
    b.label("b")
    y = b.extend(x, 48)
    b.label("c")
    (z,) = b.open(y)
    b.label("d")
    b.output("z", b.open(b.extend(z, 64))[0])
    return b.program


def test_a_party_records_its_rounds() -> None:
    program = two_layers()
    run = run_mpc(program, {"x": torch.arange(6).reshape(2, 3)})
    for ledger in run.ledgers:
        assert list(ledger.times) == [0, 1]
        first, second = ledger.times[0], ledger.times[1]
        assert first.start == 0 and first.offline_start + first.offline_seconds <= 0
        assert first.start + first.seconds <= second.offline_start
        assert second.offline_start + second.offline_seconds <= second.start
        for layer, times in ledger.times.items():
            check_order(times)
            rows = ledger.rows("online", layer)
            assert len(times.rounds) == sum(row.rounds for row in rows) == program.cost(layer).rounds
            for row in rows:
                found = [r for r in times.rounds if r.operation == row.operation]
                assert len(found) == row.rounds
                assert sum(r.bytes_sent for r in found) == row.bytes_sent
                assert sum(r.waiting for r in found) == pytest.approx(row.waiting)


def check_order(times: LayerTimes) -> None:
    """Rounds follow one another inside their layer."""
    now = times.start
    for opening in times.rounds:
        assert now <= opening.start and opening.waiting >= 0
        now = opening.start + opening.waiting
    assert now <= times.start + times.seconds


# The client ---------------------------------------------------------------------------------------


def step(layer: int, name: str, seconds: tuple[float, float]) -> control_pb2.LayerDone:
    """A layer at two parties whose clocks differ; each waits for half of it in one round."""
    times = [
        party_pb2.LayerTimes(
            offline_start=100 * party - 1, offline_seconds=0.5, start=100 * party, seconds=s,
            rounds=[party_pb2.Round(operation="a", start=100 * party + s / 4, waiting=s / 2, bytes_sent=10 + party)],
        )
        for party, s in enumerate(seconds)
    ]  # fmt: skip
    return control_pb2.LayerDone(
        layer=layer, name=name, phase=party_pb2.PHASE_ONLINE, seconds=max(seconds), ledgers=NOTHING, times=times
    )


def test_the_timeline_is_one_partys() -> None:
    """That of the party which was online longer in all, moments of the other one nowhere in it."""
    made = Report()
    made.add(step(0, "x", (1.0, 0.5)))
    made.add(step(1, "y", (1.0, 2.0)))
    shown = made.to_json()["rounds_timeline"]
    assert shown["party"] == 1
    assert shown["layers"][1] == {
        "layer": 1,
        "name": "y",
        "offline": {"start": 99.0, "seconds": 0.5},
        "online": {"start": 100.0, "seconds": 2.0},
        "rounds": {"operation": ["a"], "start": [100.5], "waiting": [1.0], "bytes_sent": [11]},
    }
    assert all(layer["online"]["start"] >= 100 for layer in shown["layers"])


def test_several_jobs_keep_the_first_timeline() -> None:
    reports = []
    for seconds in (1.0, 2.0):
        made = Report()
        made.add(step(0, "x", (seconds, seconds)))
        reports.append(made.to_json())
    total = report.merge(*reports)
    assert total["jobs"] == 2 and total["online"]["seconds"] == 3.0
    assert total["rounds_timeline"] == reports[0]["rounds_timeline"]


def test_without_steps_there_is_no_timeline() -> None:
    made = Report().to_json()
    assert made["rounds_timeline"]["layers"] == []
    assert timeline(made | {"jobs": 1}) is None
    assert "Timeline" not in render(summary() | {"rounds_timeline": made["rounds_timeline"]}, None)


def test_a_long_timeline_stays_small() -> None:
    """1,450 rounds, as many as a preset of two-round comparisons takes for BERT-base, as `--json` prints them."""
    made = Report()
    for i in range(14):
        rounds = [
            party_pb2.Round(operation="attention out", start=50 + i + k / 3000, waiting=1 / 3, bytes_sent=10**6)
            for k in range(104)
        ]
        times = party_pb2.LayerTimes(start=50 + i, seconds=1 / 3, rounds=rounds)
        made.add(control_pb2.LayerDone(layer=i, phase=party_pb2.PHASE_ONLINE, ledgers=NOTHING, times=[times, times]))
    assert len(json.dumps({"rounds_timeline": made.timeline()}, indent=2)) < 200_000


# The drawing --------------------------------------------------------------------------------------


def drawn(layers: list[dict[str, Any]], element: str) -> str:
    """What the page draws in the element of this id."""
    text = render(summary() | {"rounds_timeline": {"party": 0, "layers": layers}}, None)
    return text.split(f'id="{element}"')[1].split("</div>")[0]


def rects(svg: str, kind: str) -> list[tuple[float, float]]:
    """(start, end) of the rectangles of a class, in percent."""
    found = re.findall(rf'<rect class="{kind}" x="([-\d.]+)%" y="[\d.]+" width="([\d.]+)%"', svg)
    return [(float(at), float(at) + float(wide)) for at, wide in found]


def layer_of(name: str, start: float, parts: list[tuple[float, float]]) -> dict[str, Any]:
    """A layer whose rounds compute and wait as `parts` say, then computing as long as the first time."""
    rounds: dict[str, list[Any]] = {"operation": [], "start": [], "waiting": [], "bytes_sent": []}
    now = start
    for i, (computing, waiting) in enumerate(parts):
        rounds["operation"].append(f"op {i}")
        rounds["start"].append(now + computing)
        rounds["waiting"].append(waiting)
        rounds["bytes_sent"].append(100 + i)
        now += computing + waiting
    return {
        "layer": 0, "name": name, "offline": {"start": start - 0.5, "seconds": 0.25},
        "online": {"start": start, "seconds": now + parts[0][0] - start}, "rounds": rounds,
    }  # fmt: skip


def test_bars_lie_where_the_clock_says() -> None:
    layers = [layer_of("x", 0.0, [(0.1, 0.4), (0.2, 0.2)]), layer_of("y", 2.5, [(0.5, 0.5)])]
    overview = drawn(layers, "overview")  # from -0.5 to 4.0: 4.5 s
    assert rects(overview, "offline") == [pytest.approx((0, 5.555), abs=0.01), pytest.approx((55.555, 61.11), abs=0.01)]
    assert rects(overview, "waiting") == [
        pytest.approx((100 * (a + 0.5) / 4.5, 100 * (b + 0.5) / 4.5), abs=0.01) for a, b in ((0, 1.0), (2.5, 4.0))
    ]
    computing = [(0, 0.1), (0.5, 0.7), (0.9, 1.0), (2.5, 3.0), (3.5, 4.0)]
    assert rects(overview, "compute") == [
        pytest.approx((100 * (a + 0.5) / 4.5, 100 * (b + 0.5) / 4.5), abs=0.01) for a, b in computing
    ]


@pytest.mark.parametrize("element", ["rounds", "longest"])
def test_a_layers_line_is_full(element: str) -> None:
    """Computing and waiting alternate from 0 to 100 % of the longest layer."""
    layer = layer_of("x", 7.0, [(0.1, 0.4), (0.2, 0.2), (0.0, 0.3)])
    line = drawn([layer], element)
    bars = sorted(rects(line, "compute") + rects(line, "waiting"))
    assert bars[0][0] == 0 and bars[-1][1] == pytest.approx(100, abs=0.01)
    assert [a for a, _ in bars[1:]] == pytest.approx([b for _, b in bars[:-1]], abs=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_names_do_not_overlap(seed: int) -> None:
    draw = random.Random(seed)
    cuts = sorted(draw.random() ** draw.choice((1, 4)) for _ in range(draw.randint(2, 60)))
    names = ["embeddings", "attention out", *(f"layer {i}" for i in range(60))]
    marks = [drawing.Mark(a, b, name) for a, b, name in zip(cuts[:-1], cuts[1:], names, strict=False)]
    placed: dict[int, list[tuple[float, float]]] = {}
    for bracket in drawing.brackets(marks).items:
        if not bracket.text:
            continue
        wide = len(bracket.text) * drawing.LETTER
        left = bracket.at * drawing.WIDTH - {"start": 0, "middle": wide / 2, "end": wide}[bracket.anchor]
        assert left >= -0.01 and left + wide <= drawing.WIDTH + 0.01
        placed.setdefault(bracket.line, []).append((left, left + wide))
    for spans in placed.values():
        spans.sort()
        assert all(a[1] <= b[0] + 0.01 for a, b in pairwise(spans))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_any_duration_has_an_axis(scale: float) -> None:
    assert len(axis(0, 3.9 * scale)) == 8
    assert len(axis(-0.6 * scale, 3.9 * scale)) == 4
    assert any(tick.seconds < 0 for tick in axis(-1.1 * scale, 3.9 * scale))


def test_no_time_has_no_axis() -> None:
    assert axis(0, 0) == []

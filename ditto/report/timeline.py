"""The report's timeline: one job as one party saw it, round by round, computing and waiting.

All moments are of one party's clock (`rounds_timeline`, see `ditto.client.client.Report.timeline`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from ditto.report.pieces import axis, count, keys, milliseconds, nbytes, rect, row, seconds, table

WIDTH = 800  # pixels that a timeline has at least (the page's style says so): what fits is reckoned with this
LETTER = 6.4  # of them for one letter
Mark = tuple[float, float, str]  # start and end as fractions of the line, and what is there


@dataclass(frozen=True)
class Opening:
    """One round of a layer in seconds of the party's clock: computing from `since`, waiting from `start` to `end`."""

    operation: str
    since: float
    start: float
    end: float
    bytes_sent: int


def openings(layer: dict[str, Any]) -> list[Opening]:
    """The rounds of one layer of a timeline. What the party computes before a round starts where the last one ended."""
    rounds, since, found = layer["rounds"], layer["online"]["start"], []
    columns = (rounds[key] for key in ("operation", "start", "waiting", "bytes_sent"))
    for operation, start, waiting, sent in zip(*columns, strict=True):
        found.append(Opening(operation, since, start, start + waiting, sent))
        since = start + waiting
    return found


def waiting(layer: dict[str, Any]) -> float:
    return round(float(sum(layer["rounds"]["waiting"])), 6)


def computing(layer: dict[str, Any]) -> float:
    return round(float(layer["online"]["seconds"]) - waiting(layer), 6)


def _computed(layer: dict[str, Any]) -> list[tuple[float, float]]:
    """From when to when the party computed: before each round and after the last one."""
    found = openings(layer)
    last = found[-1].end if found else layer["online"]["start"]
    return [*((o.since, o.start) for o in found), (last, _end(layer))]


def _end(layer: dict[str, Any]) -> float:
    return float(layer["online"]["start"] + layer["online"]["seconds"])


def _shown(name: str, room: float) -> str:
    """The name, or what of it has room: the number at its end, its first word, its first letters, nothing."""
    words = name.split(" ")
    short = words[-1] if words[-1].isdigit() else words[0]
    fitting = (s for s in (name, short, f"{name[:3]}.") if len(s) * LETTER < room)
    return next(fitting, "")


def _names(marks: list[Mark], lines: int) -> list[str]:
    """What can be shown of each name if they take turns on this number of lines."""
    middles = [(start + end) / 2 for start, end, _ in marks]
    shown = []
    for i, (_, _, name) in enumerate(marks):
        left = (middles[i - lines] + middles[i]) / 2 if i >= lines else 0.0
        right = (middles[i] + middles[i + lines]) / 2 if i + lines < len(marks) else 1.0
        before, after = middles[i] - left, right - middles[i]
        leans = (i < lines and before < after) or (i + lines >= len(marks) and after < before)  # on the edge
        room = before + after if leans else 2 * min(before, after)
        shown.append(_shown(name, WIDTH * room))
    return shown


def _marks(marks: list[Mark]) -> str:
    """Brackets with names below a line, on two lines where one is too narrow."""
    lines = 1 if _names(marks, 1) == [name for *_, name in marks] else 2
    drawn = []
    for i, ((start, end, _), shown) in enumerate(zip(marks, _names(marks, lines), strict=True)):
        drawn.append(f'<line x1="{100 * start:.3f}%" x2="{100 * end:.3f}%" y1="3" y2="3"/>')
        drawn.append(f'<line x1="{100 * start:.3f}%" x2="{100 * start:.3f}%" y1="0" y2="6"/>')
        at, anchor = (start + end) / 2, "middle"
        if len(shown) * LETTER / 2 > WIDTH * min(at, 1 - at):  # it would stick out
            at, anchor = (0.0, "start") if at < 0.5 else (1.0, "end")
        drawn.append(
            f'<text x="{100 * at:.3f}%" y="{15 + 12 * (i % lines)}" text-anchor="{anchor}">{escape(shown)}</text>'
        )
    return f'<svg width="100%" height="{8 + 12 * lines}">{"".join(drawn)}</svg>'


def _overview(layers: list[dict[str, Any]]) -> str:
    """The whole job: offline above, online below, layers marked."""
    start = min(layer["offline"]["start"] for layer in layers)
    full = max(_end(layer) for layer in layers) - start

    def at(moment: float) -> float:
        return float((moment - start) / full)

    drawn = []
    for layer in layers:
        offline, online, name = layer["offline"], layer["online"], layer["name"]
        said = f"{name}, offline: {offline['seconds']:.3f} s"
        drawn.append(rect("offline", at(offline["start"]), offline["seconds"] / full, 2, 12, said))
        said = f"{name}, online: computing {computing(layer):.3f} s, waiting {waiting(layer):.3f} s"
        # computing on top of waiting: where a round is narrower than a pixel, they blend by their shares
        inside = [rect("waiting", at(online["start"]), online["seconds"] / full, 18, 20)]
        inside += [rect("compute", at(since), (until - since) / full, 18, 20) for since, until in _computed(layer)]
        drawn.append(f"<g><title>{escape(said)}</title>{''.join(inside)}</g>")
    marks = _marks([(at(layer["online"]["start"]), at(_end(layer)), str(layer["name"])) for layer in layers])
    lanes = f'<svg width="100%" height="40">{"".join(drawn)}</svg>'
    return f'<div class="wide"><div class="line" id="overview">{lanes}{marks}{axis(start, start + full)}</div></div>'


def _rounds(layer: dict[str, Any], full: float, tall: float) -> Iterator[str]:
    """A layer's rounds, from its own start, on a line that stands for `full` seconds."""
    zero = layer["online"]["start"]
    for i, o in enumerate(openings(layer), 1):
        computed, waited = o.start - o.since, o.end - o.start
        said = (
            f"{layer['name']}, round {i}, {o.operation}: computing {1000 * computed:.2f} ms, "
            f"then waiting {1000 * waited:.2f} ms, {o.bytes_sent:,} bytes sent"
        )
        yield (
            f"<g><title>{escape(said)}</title>{rect('compute', (o.since - zero) / full, computed / full, 2, tall)}"
            f"{rect('waiting', (o.start - zero) / full, waited / full, 2, tall)}</g>"
        )
    last, end = _computed(layer)[-1]
    rest = end - last
    said = f"{layer['name']}, after its last round: computing {1000 * rest:.2f} ms"
    yield rect("compute", (last - zero) / full, rest / full, 2, tall, said)


def _lanes(layers: list[dict[str, Any]]) -> str:
    """One line a layer, all on the same scale."""
    full = max(layer["online"]["seconds"] for layer in layers)
    rows = []
    for layer in layers:
        lane = f'<td class="bar"><svg width="100%" height="16">{"".join(_rounds(layer, full, 12))}</svg></td>'
        sent = layer["rounds"]["bytes_sent"]
        figures = seconds(computing(layer)), seconds(waiting(layer)), count(len(sent)), nbytes(sum(sent))
        rows.append(row(str(layer["name"]), [lane, *figures]))
    below = f'<td class="bar">{axis(0, full)}</td>'
    return table("rounds", ("layer", "", "computing s", "waiting s", "rounds", "sent"), [*rows, row("", [below])])


def _longest(layer: dict[str, Any]) -> str:
    """One layer enlarged, with its operations marked, and its rounds as a table."""
    full, zero, found = layer["online"]["seconds"], layer["online"]["start"], openings(layer)
    marks: list[Mark] = []
    for operation, group in groupby(found, lambda o: o.operation):
        run = list(group)
        marks.append(((run[0].since - zero) / full, (run[-1].end - zero) / full, operation))
    lane = f'<svg width="100%" height="36">{"".join(_rounds(layer, full, 32))}</svg>'
    rows = [
        row(
            f"{i} {o.operation}",
            [milliseconds(round(value, 6)) for value in (o.start - zero, o.start - o.since, o.end - o.start)]
            + [nbytes(o.bytes_sent)],
        )
        for i, o in enumerate(found, 1)
    ]
    heads = "round", "sent at ms", "computing before ms", "waiting ms", "sent"
    return (
        f"<h3>The longest: {escape(str(layer['name']))}</h3>"
        f'<div class="wide"><div class="line" id="longest">{lane}{_marks(marks)}{axis(0, full)}</div></div>'
        f"<details><summary>Its {len(found)} rounds</summary>{table('longest-rounds', heads, rows)}</details>"
    )


def timeline(costs: dict[str, Any]) -> str:
    """The section of a report with a timeline; empty without one."""
    shown = costs["rounds_timeline"]
    layers = [layer for layer in shown["layers"] if layer["online"]["seconds"] > 0]
    if not layers:
        return ""
    jobs = f" It is the first of {costs['jobs']} jobs; all other sections add them up." if costs["jobs"] > 1 else ""
    legend = keys(("offline", "offline"), ("compute", "online, computing"), ("waiting", "online, waiting"))
    return (
        f"<h2>Timeline</h2><p class='soft'>As party {shown['party']} saw it, which was online longer; 0 is when it "
        "began the first layer online. Waiting is from sending until the peer's bytes are there: the network, and "
        "whatever the peer still had to compute. In a gap it waits for the other party's offline part, or for the "
        f"coordinator. Point at a bar for its figures.{jobs}</p>{legend}"
        + _overview(layers)
        + "<h2>Round by round</h2><p class='soft'>Every layer from its own start, on one scale. The party computes "
        "up to a round and waits in it.</p>"
        + _lanes(layers)
        + _longest(max(layers, key=lambda layer: float(layer["online"]["seconds"])))
    )

"""`--report FILE`: one HTML page on what a request cost. It holds costs and names, no text, answer or share.

The page needs nothing besides itself: no script, no font, no picture from elsewhere, and its policy forbids them.
Every figure is a `data` element that carries the report's own number, so that a page can be read back. What the page
says and looks like is in page.html.j2, pieces.html.j2 and page.css; here is what it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import ditto
from ditto.net.emulation import Network
from ditto.report.cost_model import RunPrediction, predict_all
from ditto.report.drawing import Span
from ditto.report.pieces import Figure, count, nbytes, seconds
from ditto.report.timeline import timeline

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Headline:
    online: Figure
    rounds: Figure
    sent: Figure  # by the party that sent more
    offline: Figure
    dealt: Figure  # to both parties
    wall: Figure


@dataclass(frozen=True)
class Account:
    """A layer or an operation: its figures, and its bytes on a line (dealer to each party, sent by each party)."""

    name: str
    figures: list[Figure]
    parts: list[Span]  # of the line; empty where no row has bytes
    nbytes: list[int]


@dataclass(frozen=True)
class Part:
    """Of the command's seconds (`ditto.wall`): its place on a line that stands for all of them."""

    name: str
    said: str
    seconds: Figure
    span: Span


@dataclass(frozen=True)
class Predictions:
    """What the run would take on each network, the fastest first."""

    runs: list[tuple[RunPrediction, list[Figure]]]
    layers: list[tuple[str, list[Figure]]]  # online seconds on each


def render(costs: dict[str, Any], network: Network | None) -> str:
    """The page of a report. `network` is the one that the run was on; without it, nothing is predicted."""
    return _template().render(
        costs=costs,
        headline=_headline(costs),
        spent=_spent(costs.get("spent")),
        timeline=timeline(costs),
        layers=_accounts(costs["layers"], "name"),
        total=_figures(costs),
        operations=_accounts(costs["operations"], "operation"),
        predictions=_predictions(predict_all(costs, network)) if network else None,
        version=ditto.__version__,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only who writes a page waits for it

    environment = Environment(
        loader=PackageLoader("ditto.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.3f}%"
    environment.filters["milliseconds"] = lambda value: f"{1000 * value:.2f} ms"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment.get_template("page.html.j2")


# Sections -----------------------------------------------------------------------------------------


def _headline(costs: dict[str, Any]) -> Headline:
    online, offline = costs["online"], costs["offline"]
    return Headline(
        online=seconds(online["seconds"]),
        rounds=count(online["rounds"]),
        sent=nbytes(max(online["bytes_sent"])),
        offline=seconds(offline["seconds"]),
        dealt=nbytes(sum(offline["bytes_to_party"])),
        wall=seconds(costs["wall_seconds"]),
    )


SAID = {  # of the parts of a command's seconds
    "start": "the interpreter, and the command line's own modules",
    "reading": "texts from their file",
    "imports": "libraries, torch above all",
    "connection": "to the coordinator and the parties",
    "model": "its description and its tokenizer",
    "tokenizing": "texts to tokens",
    "checkpoint": "its tensors, for public embeddings and for the check",
    "planning": "texts to jobs, and what these will take",
    "program": "compiling what the servers will run",
    "sharing": "tokens to shares, and on their way to the parties",
    "queue": "until the servers took the job",
    "offline": "the parties' and the dealer's work ahead",
    "online": "the parties' rounds",
    "coordination": "messages between the steps",
    "reveal": "the answer's shares from the parties, added up",
    "decoding": "numbers to answers",
    "plaintext check": "the same in floats, here",
    "writing": "answers to their file",
    "printing": "answers and costs for people",
    "other": "nobody's",
}


def _spent(spent: dict[str, Any] | None) -> list[Part]:
    """Each part where those before it end; nothing for who did not measure."""
    if spent is None:
        return []
    parts = spent["parts"]
    spans = _stacked(list(parts.values()), max(sum(parts.values()), 1e-9))
    return [
        Part(name, SAID.get(name, ""), seconds(took), span)
        for (name, took), span in zip(parts.items(), spans, strict=True)
    ]


def _figures(row: dict[str, Any]) -> list[Figure]:
    online, offline = row["online"], row["offline"]
    return [
        seconds(offline["seconds"]), *map(nbytes, offline["bytes_to_party"]),
        seconds(online["seconds"]), seconds(online.get("waiting", 0.0)),
        count(online["rounds"]), *map(nbytes, online["bytes_sent"]),
    ]  # fmt: skip


def _accounts(rows: list[dict[str, Any]], key: str) -> list[Account]:
    """Layers or operations, whose names are under `key`; their lines of bytes have one scale."""
    parts = [[*row["offline"]["bytes_to_party"], *row["online"]["bytes_sent"]] for row in rows]
    full = max(map(sum, parts), default=0)
    return [
        Account(str(row[key]), _figures(row), _stacked(part, full) if full else [], part)
        for row, part in zip(rows, parts, strict=True)
    ]


def _stacked(parts: Sequence[float], full: float) -> list[Span]:
    """One after another on a line that stands for `full`."""
    starts = accumulate(parts[:-1], initial=0)
    return [Span(start / full, part / full) for start, part in zip(starts, parts, strict=True)]


def _predictions(runs: list[RunPrediction]) -> Predictions:
    shown = []
    for run in runs:
        t = run.total
        parts = (t.online, t.compute, t.latency, t.transfer, t.offline, run.overlapped, run.sequential)
        shown.append((run, [seconds(part) for part in parts]))
    names = [name for name, _ in runs[0].layers]
    layers = [(name, [seconds(run.layers[i][1].online) for run in runs]) for i, name in enumerate(names)]
    return Predictions(shown, layers)

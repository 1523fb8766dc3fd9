"""`--report FILE`: one HTML page on what a request cost. It holds costs and names, no text, answer or share.

The page needs nothing besides itself: no script, no font, no picture from elsewhere, and its policy forbids them.
Every figure is a `data` element that carries the report's own number, so that a page can be read back.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

import ditto
from ditto import files
from ditto.errors import UsageError
from ditto.net.emulation import Network
from ditto.report import pieces
from ditto.report.cost_model import RunPrediction, predict_all
from ditto.report.timeline import timeline

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2430; --soft: #5b6675; --line: #dde2e9; --card: #f5f7fa;
  --compute: #2f6fb5; --waiting: #9cc3ea; --offline: #d98a29; --second: #f0c48a; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --ink: #e4e8ee; --soft: #9aa5b3; --line: #2c343f;
  --card: #1c222a; --compute: #5b9be0; --waiting: #2d547d; --offline: #e09a42; --second: #7d5a2c; } }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { max-width: 48rem; margin: .4rem 0; } .soft, caption, footer { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.bar { width: 30%; min-width: 11rem; } #rounds td.bar { width: 70%; min-width: 30rem; } .line { min-width: 800px; }
td.bar svg, .line svg { display: block; } tr.all td { font-weight: 600; }
tr.measured td { background: var(--card); } details { margin: .8rem 0; } summary { cursor: pointer; }
.offline { fill: var(--offline); } .second { fill: var(--second); } .compute { fill: var(--compute); }
.waiting { fill: var(--waiting); } svg text { fill: var(--soft); font-size: 11px; }
#rounds g:nth-child(even) .waiting, #longest g:nth-child(even) .waiting { opacity: .75; }
svg line { stroke: var(--soft); }
.keys span { display: inline-block; margin-right: .9rem; }
.keys b { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; vertical-align: -.05rem; }
footer { margin-top: 2.5rem; font-size: .85rem; }
"""


# The file ----------------------------------------------------------------------------------------


def target(path: Path | None) -> Path | None:
    """Where the page will go, checked before any work is done. Raises UsageError."""
    if path is None:
        return None
    whole = path.resolve()  # a link stays one: what it leads to is replaced
    if not whole.parent.is_dir():
        raise UsageError(f"--report {path}: no directory {whole.parent}")
    if whole.exists() and not whole.is_file():
        raise UsageError(f"--report {path}: not a file")
    if not os.access(whole.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--report {path}: {whole.parent} is not writable")
    return whole


def write(path: Path, text: str) -> None:
    """Write all of it or nothing: a page that stands there stays until the new one is whole."""
    files.write(path, text)


# Sections ----------------------------------------------------------------------------------------


def _cards(costs: dict[str, Any]) -> str:
    online, offline = costs["online"], costs["offline"]
    figures = (
        ("online", f"{pieces.seconds(online['seconds'])} s"),
        ("rounds", pieces.count(online["rounds"])),
        ("sent by each party", pieces.nbytes(max(online["bytes_sent"]))),
        ("offline", f"{pieces.seconds(offline['seconds'])} s"),
        ("from the dealer to both", pieces.nbytes(sum(offline["bytes_to_party"]))),
        ("in all, as the client saw it", f"{pieces.seconds(costs['wall_seconds'])} s"),
    )
    cards = "".join(f'<div class="card"><b>{value}</b>{label}</div>' for label, value in figures)
    return f'<div class="cards" id="headline">{cards}</div>'


def _accounts(title: str, costs: dict[str, Any], rows: list[dict[str, Any]], key: str) -> str:
    """Figures and a bar of bytes for each row: layers or operations, whose names are under `key`."""
    full = max((sum(r["online"]["bytes_sent"]) + sum(r["offline"]["bytes_to_party"]) for r in rows), default=0)

    def cells(row: dict[str, Any]) -> list[str]:
        online, offline = row["online"], row["offline"]
        return [
            pieces.seconds(offline["seconds"]), *map(pieces.nbytes, offline["bytes_to_party"]),
            pieces.seconds(online["seconds"]), pieces.seconds(online.get("waiting", 0.0)),
            pieces.count(online["rounds"]), *map(pieces.nbytes, online["bytes_sent"]),
        ]  # fmt: skip

    def bytes_bar(row: dict[str, Any]) -> str:
        parts, now = [], 0.0
        amounts = zip(
            ("offline", "second", "compute", "waiting"),
            ("dealer to P0", "dealer to P1", "sent by P0", "sent by P1"),
            [*row["offline"]["bytes_to_party"], *row["online"]["bytes_sent"]],
            strict=True,
        )
        for kind, what, n in amounts:
            parts.append((kind, now, n, f"{what}: {n:,} bytes"))
            now += n
        return pieces.bar(parts, full)

    heads = "offline s", "dealer to P0", "to P1", "online s", "of it waiting", "rounds", "sent by P0", "by P1", "bytes"
    body = [pieces.row(str(row[key]), [*cells(row), bytes_bar(row)]) for row in rows]
    # the slower party differs between operations, so that their seconds need not add up to those of the layers
    total = [pieces.row("all", [*cells(costs), "<td></td>"], "all")] if key == "name" else []
    legend = pieces.keys(
        ("offline", "dealer to P0"), ("second", "to P1"), ("compute", "sent by P0"), ("waiting", "by P1")
    )
    name = "layers" if key == "name" else "operations"
    return f"<h2>{title}</h2>{legend}" + pieces.table(name, (name[:-1], *heads), [*body, *total])


def _predictions(runs: list[RunPrediction]) -> str:
    if not runs:
        return (
            "<h2>On other networks</h2><p>Not predicted: the servers stand on a network of their own, and what of the "
            "time it explains is not known here.</p>"
        )

    def link(run: RunPrediction) -> str:
        rate = run.network.bandwidth_mbps
        return f"{rate:,.0f} Mbit/s" if rate else "unlimited"

    def row(run: RunPrediction) -> str:
        t = run.total
        parts = (t.online, t.compute, t.rounds, t.transfer, t.offline, run.overlapped, run.apart)
        cells = [link(run), f"{run.network.rtt_ms:g} ms", *map(pieces.seconds, parts)]
        name, kind = (f"{run.network.name} (measured)", "measured") if run.measured else (run.network.name, "")
        return pieces.row(name, cells, kind)

    heads = (
        "network", "bandwidth", "round trip", "online s", "= compute", "+ rounds", "+ bytes", "offline s",
        "both, overlapping", "both, apart",
    )  # fmt: skip
    names = [name for name, _ in runs[0].layers]
    layers = [
        pieces.row(name, [pieces.seconds(run.layers[i][1].online) for run in runs]) for i, name in enumerate(names)
    ]
    return (
        "<h2>On other networks</h2><p>Predicted online: the measured seconds without what this run's own network "
        "explains, and then half a round trip for each round and the larger party's bytes over the bandwidth. "
        "Offline, for each layer: the longer of its measured seconds and its correlations over the dealer's link, as "
        "if none arrived early. Both phases: if everything that may overlap does, and if nothing does. All of it "
        "supposes this machine, as busy as it was in this run.</p>"
        + pieces.table("predictions", heads, map(row, runs))
        + "<details><summary>Online seconds by layer</summary>"
        + pieces.table("layer-predictions", ("layer", *(run.network.name for run in runs)), layers)
        + "</details>"
    )


def page(costs: dict[str, Any], own: Network | None) -> str:
    """The page of a report. `own` is the network that the run was on; without it, nothing is predicted."""
    about = f"{costs['architecture']}, preset {costs['preset']}, network {costs['network']}"
    size_ = f"{costs['texts']} text(s) padded to {costs['seq']} tokens"
    runs = predict_all(costs, own) if own else []
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:\"><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>What it cost: {escape(str(costs['model']))}</title><style>{_STYLE}</style></head><body>"
        f"<h1>What it cost: {escape(str(costs['model']))}</h1><p class='soft'>{escape(about)}; {escape(size_)}</p>"
        + _cards(costs) + timeline(costs)
        + _accounts("By layer", costs, costs["layers"], "name")
        + _accounts("By operation", costs, costs["operations"], "operation")
        + _predictions(runs)
        + f"<footer>Written by ditto {escape(ditto.__version__)}. Seconds are the slower party's; the jobs of one "
        "request are added up. This page contains no text, no answer and no share.</footer></body></html>\n"
    )  # fmt: skip

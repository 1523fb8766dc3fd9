"""Cost against length and batch: counted for one shape, measured for another, each beside its closed form.

    python -m benchmarks.length [--count bert-base] [--measure minilm] [--repeat 3] [--out docs/benchmarks/length]
    python -m benchmarks.length --measure ""                  # counts only

With the ranges of all-MiniLM-L6-v2 (`--ranges`), on loopback. Writes results.json, results.md and length.png.

**The closed form.** A step costs so much for each element, and of elements there are 1, n or n^2 for n tokens: bytes
are a + b n + c n^2, times the number of texts. Types that hold what is summed over a row, and the tables that read
them, grow with the logarithm of n, at other lengths in each layer; so one form for all lengths, by least squares, is
off by what results.md states. Where no type changes the form is exact for multiples of 16, of which openings, packed to
whole bytes, leave no rest (`runs`). A job in parts (ditto.engine.parts) rounds each part's openings up: "bytes more".
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ditto.cli.bench_presets import machine
from ditto.cli.common import note
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.parts import cut
from ditto.engine.plan import Plan
from ditto.files import read_json
from ditto.models import Description, compile_stage, encode_inputs, random_batch, random_model
from ditto.models.description import LayerRanges, layer_ranges
from ditto.models.random import random_checkpoint, scaled_description
from ditto.net.emulation import network

RANGES = Path(__file__).parent / "ranges" / "all-minilm-l6-v2.json"
STEP = 16  # tokens between two counts
WHOLE_MB = 1 << 20  # what is held at once where nothing is cut
COUNTS = ("sent", "dealt")
PHASES = ("online", "offline")
LONGEST = 512


class Count(NamedTuple):
    """Of one job: rounds, bytes that each party sends, bytes from the dealer, parts that it is computed in."""

    rounds: int
    sent: int
    dealt: int
    parts: int = 1


Form = tuple[float, float, float]  # (a, b, c)


def at(form: Form, n: Any) -> Any:
    """a + b n + c n^2."""
    a, b, c = form
    return a + b * n + c * n * n


def count(description: Description, batch: int, seq: int, **plan: int) -> Count:
    """What the program states; with hold_mb=WHOLE_MB as if in one part."""
    asked = Plan(batch, seq, **plan)
    program = cut(compile_stage(description, asked), asked.hold)
    cost = program.cost()
    return Count(cost.rounds, cost.online, cost.dealer, len(program.layers))


def runs(lengths: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int, Form]]:
    """Where a count is exactly a + b n + c n^2: first and last of four or more equally spaced lengths, and the form."""
    found, start = [], 0
    while start + 4 <= len(lengths):
        end = start + 3
        while end < len(lengths) and not np.diff(counts[end - 3 : end + 1], 3).any():
            end += 1
        if end - start > 3:
            form = fit(lengths[start:end], counts[start:end])[0]
            found.append((lengths[start], lengths[end - 1], form))
        start = max(start + 1, end - 2)
    return found


def fit(lengths: Sequence[int], values: Sequence[float]) -> tuple[Form, float]:
    """One (a, b, c) for all lengths by least squares of relative errors, and the largest relative error."""
    n, y = np.array(lengths, float), np.array(values, float)
    terms = np.stack([np.ones_like(n), n, n * n], 1) / y[:, None]
    form, *_ = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)
    a, b, c = (float(x) for x in form)
    return (a, b, c), float(np.abs(terms @ form - 1).max())


def counted(description: Description, lengths: Sequence[int], batches: Sequence[int], seq: int) -> dict[str, Any]:
    """Counts over lengths and over batches with their forms."""
    whole = [count(description, 1, n, hold_mb=WHOLE_MB) for n in lengths]
    cut_up = [count(description, 1, n) for n in lengths]
    texts = [count(description, batch, seq, hold_mb=WHOLE_MB) for batch in batches]
    document: dict[str, Any] = {
        "lengths": list(lengths), "rounds": [c.rounds for c in whole],
        "in parts": {"rounds": [c.rounds for c in cut_up], "parts": [c.parts for c in cut_up]},
        "batches": {"seq": seq, "texts": list(batches)},
    }  # fmt: skip
    for name in COUNTS:
        values = [getattr(c, name) for c in whole]
        form, error = fit(lengths, values)
        document[name] = values
        document["in parts"][name] = [getattr(c, name) for c in cut_up]
        document["batches"][name] = [getattr(c, name) for c in texts]
        document[f"{name} runs"] = runs(lengths, values)
        document[f"{name} form"] = {"a b c": form, "largest error": error}
    return document


def measured(
    shape: str, real: Sequence[LayerRanges], points: Sequence[tuple[int, int]], repeat: int, layers: int | None
) -> list[dict[str, Any]]:
    """Seconds and counts of (batch, length), medians of interleaved jobs after one to warm up."""
    description, weights, _ = random_model(shape, layers, max(n for _, n in points), real=real)
    reports: dict[tuple[int, int], list[dict[str, Any]]] = {point: [] for point in points}
    with _client() as client:
        client.share_model(description, weights)
        for i in range(repeat):
            for batch, n in [min(points)] * (not i) + list(points):
                ask = partial(_inputs, description, random_batch(batch, n))
                report = client.infer(description.name, ask, batch, n).report
                reports[batch, n].append(report)
                seconds = " + ".join(f"{report[p]['seconds']:.2f}" for p in PHASES)
                note(f"{shape}, {batch} x {n} tokens, {i + 1}/{repeat}: {seconds} s")
        del reports[min(points)][0]
    return [_row(batch, n, found) for (batch, n), found in reports.items()]


@contextlib.contextmanager
def _client() -> Iterator[Client]:
    with embedded(network=network("loopback")) as cluster, Client(cluster.client_config(), in_turns=True) as client:
        yield client


def _inputs(description: Description, batch: Any, program: Any) -> Any:
    return encode_inputs(description, program, batch)


def _row(batch: int, n: int, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    runs = {phase: [round(r[phase]["seconds"], 4) for r in reports] for phase in PHASES}
    return {
        "batch": batch, "seq": n, "runs": runs, **{p: statistics.median(runs[p]) for p in PHASES},
        "rounds": reports[0]["online"]["rounds"], "sent": max(reports[0]["online"]["bytes_sent"]),
        "dealt": sum(reports[0]["offline"]["bytes_to_party"]),
    }  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """Tables of both."""
    found = document["counted"]
    lines = [
        f"## {document['count']}, counted",
        "",
        "| tokens | rounds | MB sent by each party | MB from the dealer | in parts: rounds | parts | bytes more |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = found["in parts"]
    for i, n in enumerate(found["lengths"]):
        if n & (n - 1) and n != 384:
            continue
        more = sum(cells[name][i] - found[name][i] for name in COUNTS)
        lines.append(
            f"| {n} | {found['rounds'][i]} | {found['sent'][i] / 1e6:.1f} | {found['dealt'][i] / 1e6:.0f} "
            f"| {cells['rounds'][i]} | {cells['parts'][i]} | {more} |"
        )
    lines += ["", "| | a, MB | b, kB a token | c, bytes a pair of tokens | off by at most |", "|---|---|---|---|---|"]
    for name in COUNTS:
        one = found[f"{name} form"]
        span = f"{name}, {found['lengths'][0]} to {found['lengths'][-1]}"
        lines.append(f"| {span} | {_form(one['a b c'])} | {100 * one['largest error']:.1f} % |")
        lines += [f"| {name}, {a} to {b} | {_form(form)} | exact |" for a, b, form in found[f"{name} runs"]]
    if document["rows"]:
        lines += ["", f"## {document['measure']}, measured on loopback, medians of {document['repeat']}", ""]
        lines += ["| texts | tokens | online s | offline s | rounds | MB sent | MB dealt | form: online, offline s |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in document["rows"]:
            forms = ", ".join(f"{row['form'][p]:.2f}" for p in PHASES) if "form" in row else ""
            lines.append(
                f"| {row['batch']} | {row['seq']} | {row['online']:.2f} | {row['offline']:.2f} | {row['rounds']} "
                f"| {row['sent'] / 1e6:.1f} | {row['dealt'] / 1e6:.0f} | {forms} |"
            )
    return "\n".join(lines)


def _form(form: Sequence[float]) -> str:
    a, b, c = form
    return f"{a / 1e6:.2f} | {b / 1e3:.2f} | {c:.1f}"


def with_forms(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The forms of seconds: over the lengths of one text, (a, b, c); what they say of each row goes into it."""
    alone = [row for row in rows if row["batch"] == 1]
    forms: dict[str, Any] = {}
    if len(alone) < 4:  # as many numbers as rows would always fit
        return forms
    for phase in PHASES:
        forms[phase], _ = fit([row["seq"] for row in alone], [row[phase] for row in alone])
        for row in alone:
            row.setdefault("form", {})[phase] = at(forms[phase], row["seq"])
    return forms


def plot(document: dict[str, Any], path: Path) -> None:
    """Bytes, seconds over length, and both over the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = document["counted"]
    figure, (bytes_, seconds, texts) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, title in zip(COUNTS, ("sent by each party", "from the dealer"), strict=True):
        (dots,) = bytes_.loglog(found["lengths"], [x / 1e6 for x in found[name]], ".", label=title)
        n = np.linspace(found["lengths"][0], found["lengths"][-1], 200)
        bytes_.loglog(n, at(found[f"{name} form"]["a b c"], n) / 1e6, color=dots.get_color(), linewidth=1)
        each = np.array(found["batches"][name]) / found["batches"][name][0]
        texts.loglog(found["batches"]["texts"], each, "x", label=f"{title}, {document['count']}")
    bytes_.set(title=f"{document['count']}: MB, and a + b n + c n²", xlabel="tokens")
    alone = [row for row in document["rows"] if row["batch"] == 1]
    together = [row for row in document["rows"] if row["seq"] == found["batches"]["seq"]]
    for phase in PHASES if alone else ():
        (dots,) = seconds.loglog([r["seq"] for r in alone], [r[phase] for r in alone], "o", label=phase)
        if phase in document["forms"]:
            n = np.linspace(alone[0]["seq"], alone[-1]["seq"], 200)
            seconds.loglog(n, at(document["forms"][phase], n), color=dots.get_color(), linewidth=1)
        times = [r[phase] / together[0][phase] for r in together]
        texts.loglog([r["batch"] for r in together], times, "o", label=f"{phase} s, {document['measure']}")
    seconds.set(title=f"{document['measure']}: seconds, loopback", xlabel="tokens")
    texts.loglog(found["batches"]["texts"], found["batches"]["texts"], "--", color="grey", linewidth=0.8)
    texts.set(title=f"times one text of {found['batches']['seq']} tokens", xlabel="texts")
    for axis in (bytes_, seconds, texts):
        axis.set_xscale("log", base=2)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def main(
    shape: Annotated[str, typer.Option("--count", help="The shape that is counted.")] = "bert-base",
    measure: Annotated[str, typer.Option("--measure", help="The shape that is measured; empty: none.")] = "minilm",
    lengths: Annotated[str, typer.Option(help="Measured lengths.")] = "32,64,128,256,512",
    batches: Annotated[str, typer.Option(help="Texts in a job.")] = "1,4,16",
    batch_seq: Annotated[int, typer.Option(help="Tokens of a text where there are several.")] = 32,
    layers: Annotated[int | None, typer.Option(help="Of both; default: the shapes'.")] = None,
    repeat: int = 3,
    ranges: Path = RANGES,
    out: Path = Path("docs/benchmarks/length"),
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    real = layer_ranges(read_json(ranges))
    description, _ = scaled_description(random_checkpoint(shape, layers), shape, LONGEST, real=real)
    note(f"{shape}: counting")
    points = [(1, n) for n in _numbers(lengths)] + [(b, batch_seq) for b in _numbers(batches) if b > 1]
    rows = measured(measure, real, points, repeat, layers) if measure else []
    document = {
        "machine": machine(), "ranges": ranges.stem, "repeat": repeat, "count": shape, "measure": measure,
        "counted": counted(description, range(32, LONGEST + 1, STEP), _numbers(batches), batch_seq),
        "rows": rows, "forms": with_forms(rows),
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(markdown(document) + "\n")
    plot(document, out / "length.png")
    typer.echo(markdown(document))


if __name__ == "__main__":
    typer.run(main)

"""Several jobs at once on one pair of parties: four against one, and throughput and latency against load.

    python -m benchmarks.overlap [--network wan] [--repeat 5] [--ranges benchmarks/ranges/all-mpnet-base-v2.json]
    python -m benchmarks.overlap --model ""                   # the second part only; --clients "" for the first only

Writes results.json, results.md and load.png to `--out`. The machine is shared by all servers and clients; whatever else
runs on it is in the figures.

1. `--jobs` clients ask a shape once, all at the same moment; before it one alone does: in turns, `--repeat` times,
   after one job that nobody times. Seconds are from asking to the last answer, each client with connections of its own.
2. `--clients` of a small model (asking.py: a BERT of one layer, hidden size 16, 8 tokens) ask one job after another for
   `--seconds`, the smallest number of them first, on each of `--networks`, with each of `--slots` jobs at once (1: as
   before there were several): threads in four processes, an identity each, as in load.py. The first fifth of the time
   does not count; with many clients it should be a round of them all. A client's p99 is of its own jobs: where these
   are few, their slowest one. About six minutes on two idle cores, its own starts included:

    python -m benchmarks.overlap --model "" --seconds 4,4,8,30
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.load import PROCESSES, Job, loaded, percentiles
from ditto.cli.bench_presets import machine, read_ranges
from ditto.cli.common import note
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.models import encode_inputs, random_batch, random_model
from ditto.net.emulation import network as profile

WARM = 0.2  # of the seconds under load, at their beginning
KINDS = "one", "several"


# Four against one ---------------------------------------------------------------------------------


def at_once(
    shape: str, seq: int, layers: int | None, network: str, jobs: int, repeat: int, ranges: Path | None
) -> dict[str, Any]:
    """Seconds of one job and of several at once, in turns."""
    real = read_ranges(ranges) if ranges else ()
    description, weights, _ = random_model(shape, layers, seq, real=real)
    batch, found = random_batch(1, seq), defaultdict[str, list[float]](list)

    def ask(config: Any, ready: threading.Barrier) -> float:
        with Client(config) as client:
            client.status()  # connected
            ready.wait()
            client.infer(description.name, lambda program: encode_inputs(description, program, batch), 1, seq)
            return time.monotonic()

    def timed(config: Any, count: int) -> float:
        began: list[float] = []
        ready = threading.Barrier(count, lambda: began.append(time.monotonic()))
        with ThreadPoolExecutor(count) as many:
            ends = [many.submit(ask, config, ready) for _ in range(count)]
            return max(end.result() for end in ends) - began[0]

    with embedded(network=profile(network)) as cluster:
        config = cluster.client_config()
        with Client(config) as client:
            client.share_model(description, weights)
        timed(config, 1)
        for i in range(repeat):
            for kind, count in zip(KINDS, (1, jobs), strict=True):
                found[kind].append(timed(config, count))
            note(f"{shape}, {network}, {i + 1}/{repeat}: " + ", ".join(f"{k} {found[k][-1]:.2f} s" for k in KINDS))
    one, several = (statistics.median(found[kind]) for kind in KINDS)
    runs = {kind: [round(seconds, 3) for seconds in found[kind]] for kind in KINDS}
    return {
        "model": shape, "seq": seq, "layers": layers, "network": network, "jobs": jobs, "runs": runs,
        "one": round(one, 3), "several": round(several, 3), "ratio": round(several / one, 3),
    }  # fmt: skip


# Load ---------------------------------------------------------------------------------------------


def under_load(network: str, slots: int, counts: Sequence[int], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each number of clients, which ask for their seconds, one number after the other: jobs a second,
    latencies of all, and the p99 of the clients for which it was the least and the most."""
    root, most = Path(tempfile.mkdtemp(prefix="overlap-")), max(counts)
    jobs: list[Job] = []
    began: list[float] = []

    def collect(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        jobs.extend(Job(**json.loads(line)) for line in process.stdout)

    try:
        with loaded(root, most, max(most, PROCESSES), slots, profile(network)) as (_, processes, _):
            readers = [threading.Thread(target=collect, args=(process,)) for process in processes]
            for reader in readers:
                reader.start()
            for count, each in zip(counts, seconds, strict=True):
                began.append(time.monotonic())
                for process, share in zip(processes, _shares(count, len(processes)), strict=True):
                    assert process.stdin is not None
                    process.stdin.write(f"{share}\n")
                    process.stdin.flush()
                time.sleep(each)
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            for reader in readers:
                reader.join(300)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return [
        _row(network, slots, count, jobs, at + WARM * each, at + each)
        for count, at, each in zip(counts, began, seconds, strict=True)
    ]


def _shares(clients: int, processes: int) -> list[int]:
    """Of so many clients, each process's."""
    cuts = [clients * i // processes for i in range(processes + 1)]
    return [last - first for first, last in itertools.pairwise(cuts)]


def _row(network: str, slots: int, clients: int, jobs: Sequence[Job], start: float, end: float) -> dict[str, Any]:
    counted = [job for job in jobs if start <= job.ended <= end]
    by_client = defaultdict[int, list[float]](list)
    for job in counted:
        by_client[job.client].append(job.ended - job.began)
    p99 = sorted(percentiles(of).get("p99", of[0]) for of in by_client.values())
    served = sorted([0] * (clients - len(by_client)) + [len(of) for of in by_client.values()])
    row = {
        "network": network, "jobs_at_once": slots, "clients": clients, "jobs": len(counted),
        "outcomes": dict(Counter(job.outcome for job in counted)), "busy": sum(job.busy for job in counted),
        "jobs_per_second": round(len(counted) / (end - start), 2),
        "latency": percentiles([job.ended - job.began for job in counted]),
        "p99_per_client": [round(p99[0], 3), round(p99[-1], 3)] if p99 else [],
        "jobs_per_client": [served[0], served[-1]],
    }  # fmt: skip
    note(f"{network}, {slots} at once, {clients} clients: {row['jobs_per_second']} jobs/s, {row['latency']}")
    return row


# What is written ----------------------------------------------------------------------------------


def markdown(document: dict[str, Any]) -> str:
    lines = []
    if found := document.get("at_once"):
        lines += [
            f"## {found['model']}, {found['seq']} tokens, {found['network']}, medians of {len(found['runs']['one'])}",
            "",
            f"| one job, s | {found['jobs']} at once, s | times one |",
            "|---|---|---|",
            f"| {found['one']:.2f} | {found['several']:.2f} | {found['ratio']:.2f} |",
            "",
        ]
    if rows := document["load"]:
        lines += ["## Under load", ""]
        lines += [
            "| network | jobs at once | clients | jobs/s | p50 s | p90 s | p99 s | p99 of a client, least, most "
            "| jobs of a client, least, most |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in rows:
            of = " | ".join(f"{row['latency'].get(p, 0):.2f}" for p in ("p50", "p90", "p99"))
            each = ", ".join(f"{seconds:.2f}" for seconds in row["p99_per_client"])
            lines.append(
                f"| {row['network']} | {row['jobs_at_once']} | {row['clients']} | {row['jobs_per_second']:.2f} "
                f"| {of} | {each} | {', '.join(map(str, row['jobs_per_client']))} |"
            )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Throughput and median latency against clients, a line for each network and number of jobs at once."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (pace, latency) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = defaultdict[tuple[str, int], list[dict[str, Any]]](list)
    for row in rows:
        lines[row["network"], row["jobs_at_once"]].append(row)
    slots = sorted({slots for _, slots in lines})
    for (network, at_once), of in lines.items():
        style = {"marker": "o", "linestyle": "--" if at_once == slots[0] != slots[-1] else "-"}
        clients, label = [row["clients"] for row in of], f"{network}, {at_once} at once"
        pace.plot(clients, [row["jobs_per_second"] for row in of], label=label, **style)
        latency.plot(clients, [row["latency"].get("p50", float("nan")) for row in of], label=label, **style)
    pace.set(title="jobs a second", xlabel="clients")
    latency.set(title="median latency, s", xlabel="clients", yscale="log")
    for axis in (pace, latency):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    latency.legend(frameon=False, fontsize=8)  # of both
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def main(
    model: Annotated[str, typer.Option(help="The shape of the first part; empty: none.")] = "bert-base",
    seq: int = 128,
    layers: Annotated[int | None, typer.Option(help="Default: the shape's.")] = None,
    ranges: Annotated[Path | None, typer.Option(help="A trained model's ranges.")] = None,
    network: Annotated[str, typer.Option(help="Of the first part.")] = "wan",
    jobs: Annotated[int, typer.Option(help="At once, in the first part.")] = 4,
    repeat: int = 5,
    clients: Annotated[str, typer.Option(help="Of the second part; empty: none.")] = "1,4,16,64",
    networks: Annotated[str, typer.Option(help="Of the second part.")] = "loopback,lan,wan",
    slots: Annotated[str, typer.Option(help="Jobs at once, of the second part.")] = "1,4",
    seconds: Annotated[str, typer.Option(help="Of each number of clients, one or as many.")] = "60",
    out: Path = Path("results"),
) -> None:
    counts, each = _numbers(clients), [float(x) for x in seconds.split(",")]
    each = each * len(counts) if len(each) == 1 else each
    if len(each) != len(counts) or counts != sorted(counts):
        raise typer.BadParameter("--clients in growing numbers, --seconds one or as many")
    document: dict[str, Any] = {"machine": machine(), "load": []}
    out.mkdir(parents=True, exist_ok=True)
    if model:
        document["at_once"] = at_once(model, seq, layers, network, jobs, repeat, ranges)
    for name in networks.split(","):
        for at in _numbers(slots) if counts else ():
            document["load"] += under_load(name, at, counts, each)
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(markdown(document))
    if document["load"]:
        plot(document["load"], out / "load.png")
    typer.echo(markdown(document))


if __name__ == "__main__":
    typer.run(main)

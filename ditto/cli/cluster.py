"""`ditto cluster`: the four servers as processes of this machine."""

import re
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, note, one_line, out
from ditto.cli.waiting import awaited, waiting
from ditto.client.home import home
from ditto.client.local_cluster import Cluster, Process
from ditto.client.status import ask
from ditto.errors import DittoError
from ditto.names import server_name
from ditto.net.config import MOST_THREADS, MOST_WORKERS
from ditto.net.emulation import network as profile
from ditto.report.pieces import size

app = typer.Typer(help="The servers as local processes.", no_args_is_help=True)


@app.command()
def up(
    threads: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Threads of each process; auto: an even share of the cores it may use (first start only).",
        ),
    ] = "1",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the health checks.")] = 60,
    network: Annotated[
        str | None,
        typer.Option(help="Emulate a network: a profile's name or a YAML file. Stays until another is given."),
    ] = None,
    record: Annotated[
        int | None,
        typer.Option(min=0, help="Each party keeps its view of the last N jobs for `audit`; 0: none. Stays so."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_WORKERS, help="Workers of each party, which share its jobs. Stays so."),
    ] = None,
    json: Json = False,
) -> None:
    """Start what does not run yet: dealer, both parties, coordinator."""
    cluster = Cluster(home(), note)
    cluster.configure(
        threads=_threads(threads), network=profile(network) if network else None, record=record, workers=workers
    )
    with waiting(json) as say:
        processes = cluster.up(timeout, awaited(say))
    _show(cluster, processes, json)


def _threads(value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= MOST_THREADS:
        raise typer.BadParameter(f"{value[:40]!r}: auto, or a number from 1 to {MOST_THREADS}", param_hint="--threads")
    return int(value)


@app.command()
def status(json: Json = False) -> None:
    """Say which processes run and answer, what is queued, what the dealer holds, and how fast the last jobs were."""
    cluster = Cluster(home())
    processes = cluster.status()
    _show(cluster, processes, json, _activity(cluster, processes))


def _activity(cluster: Cluster, processes: list[Process]) -> dict[str, Any]:
    """None for what nobody can tell: a status is no error, whatever state the cluster is in."""
    if any(p.role == "coordinator" and p.state == "serving" for p in processes):
        try:
            return ask(cluster.client_config())
        except DittoError as error:
            note(f"coordinator: {error}")
    return dict.fromkeys(("queue", "computing", "workers", "faults", "stock", "dealer", "throughput"))


@app.command()
def down(json: Json = False) -> None:
    """Stop every process; models and certificates stay."""
    cluster = Cluster(home(), note)
    stopped = cluster.down()
    left = _warn_of_unconfirmed(cluster)
    if json:
        emit({"home": str(home()), "stopped": stopped, "unconfirmed": left})
    else:
        out.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _warn_of_unconfirmed(cluster: Cluster) -> dict[str, int]:
    left = cluster.unconfirmed()
    for role, pid in left.items():
        note(f"{role}: process {pid} is on record, but it is not known to be this cluster's server; it was left alone")
    return left


def _show(cluster: Cluster, processes: list[Process], json: bool, activity: dict[str, Any] | None = None) -> None:
    left, aside = _warn_of_unconfirmed(cluster), cluster.set_aside()
    if json:
        rows: list[dict[str, Any]] = [
            {"role": p.role, "address": p.address, "pid": p.pid, "state": p.state, "peak_rss_bytes": p.peak_rss}
            for p in processes
        ]
        serving = all(p.state == "serving" for p in processes)
        document = {"home": str(cluster.root), "serving": serving, "processes": rows}
        emit(document | {"unconfirmed": left, "set_aside": aside} | (activity or {}))
        return
    table = Table("process", "address", "pid", "state", "peak memory", box=None, pad_edge=False)
    for p in processes:
        memory = size(p.peak_rss) if p.peak_rss else "-"
        table.add_row(p.role, p.address, str(p.pid or "-"), p.state, memory)
    out.print(table)
    for line in _lines(activity or {}):
        out.print(one_line(line))
    for role, count in aside.items():
        out.print(f"{role}: {count} damaged entries set aside; its log says which. Share their models again")
    out.print(f"state, certificates, logs: {cluster.root}")


def _computing(servers: dict[str, dict[str, Any]]) -> list[str]:
    """Three lines for each way in which servers compute."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for role, its in servers.items():
        kernels = ", ".join(f"{bits} bits {name}" for bits, name in its["kernels"].items()) or "no kernel chosen yet"
        features = ", ".join(its["features"]) or "baseline"
        alike.setdefault((f"threads {its['threads']}, cores {its['cores']}", features, kernels), []).append(role)
    return [
        line
        for (first, *more), roles in alike.items()
        for line in (f"{', '.join(roles)}: {first}", *(f"  {text}" for text in more))
    ]


def _lines(activity: dict[str, Any]) -> list[str]:
    lines = []
    if queue := activity.get("queue"):
        running = f"running {', '.join(queue['running'])}" if queue["running"] else "nothing runs"
        aside = f", {queue['aside']} standing aside" if queue["aside"] else ""
        lines.append(f"queue: {running}, {queue['waiting']} waiting{aside}")
    for worker in activity.get("workers") or ():
        state = "serving" if worker["serving"] else "not up"
        why = f" ({worker['error']})" if worker["error"] else ""
        lines.append(f"{server_name(worker['role'], worker['worker'])}, {worker['address']}: {state}{why}")
    lines += _computing(activity.get("computing") or {})
    if dealer := activity.get("dealer"):
        text = f"dealer: your models {', '.join(dealer['models']) or 'none'}"
        for role, stock in dealer["parties"].items():
            text += f"; {role} {size(stock['sent_bytes'])} sent, {size(stock['ready_bytes'])} ready"
        lines.append(text)
    for s in activity.get("stock") or ():
        many = f"{s['batch']} x {s['seq']} tokens" + (f", {s['tokens']} more" if s["tokens"] > 1 else "")
        lines.append(f"in stock: {s['model']}, {many}: {s['jobs']} jobs, {size(s['bytes'])} at {s['role']}")
    lines += [f"{f['model']}: {f['role']} {f['what']}; share it again" for f in activity.get("faults") or ()]
    if done := activity.get("throughput"):
        text = f"jobs: {done['done']} done, {done['failed']} failed, {done['cancelled']} cancelled"
        if done["recent"]:
            text += f"; {done['mean_offline_seconds']:.2f} s offline and {done['mean_online_seconds']:.2f} s online"
            text += f" a job, mean of the last {done['recent']}"
        lines.append(text)
    return lines

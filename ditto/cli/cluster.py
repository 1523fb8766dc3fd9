"""`ditto cluster`: the four servers as processes of this machine."""

from typing import Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, out, size
from ditto.cluster import Cluster, Process, home
from ditto.network import network as profile

app = typer.Typer(help="The servers as local processes.", no_args_is_help=True)


@app.command()
def up(
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process (first start only).")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the health checks.")] = 60,
    network: Annotated[
        str | None,
        typer.Option(help="Emulate a network: a profile's name or a YAML file. Stays until another is given."),
    ] = None,
    json: Json = False,
) -> None:
    """Start what does not run yet: dealer, both parties, coordinator."""
    cluster = Cluster(home())
    cluster.configure(threads=threads, network=profile(network) if network else None)
    _show(cluster, cluster.up(timeout), json)


@app.command()
def status(json: Json = False) -> None:
    """Say which processes run and answer."""
    cluster = Cluster(home())
    _show(cluster, cluster.status(), json)


@app.command()
def down(json: Json = False) -> None:
    """Stop every process; models and certificates stay."""
    stopped = Cluster(home()).down()
    if json:
        emit({"home": str(home()), "stopped": stopped})
    else:
        out.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _show(cluster: Cluster, processes: list[Process], json: bool) -> None:
    if json:
        rows: list[dict[str, Any]] = [
            {"role": p.role, "address": p.address, "pid": p.pid, "state": p.state, "peak_rss_bytes": p.peak_rss}
            for p in processes
        ]
        emit({"home": str(cluster.root), "serving": all(p.state == "serving" for p in processes), "processes": rows})
        return
    table = Table("process", "address", "pid", "state", "peak memory", box=None, pad_edge=False)
    for p in processes:
        memory = size(p.peak_rss) if p.peak_rss else "-"
        table.add_row(p.role, p.address, str(p.pid or "-"), p.state, memory)
    out.print(table)
    out.print(f"state, certificates, logs: {cluster.root}")

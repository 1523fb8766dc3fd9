"""Sixty-four clients at once on a small model: errors, latencies, fairness, and what the servers take over time.

    python -m benchmarks.load --seconds 600 [--clients 64] [--json]

A local cluster of its own, real processes over mutual TLS. The clients are threads in four processes, each process an
identity of its own, each thread with connections of its own; all share the machine with the servers, so that the jobs
a second are this machine's and no limit of the protocol. Each asks one job after another and checks its answer.
`--queue-limit` (less than there are clients) makes the coordinator refuse some: they come again when they were told to.

Beside them ask two more (slow_clients.py): in every other sixth of the time one stops reading its answer and one sends
its inputs at a trickle; in the others they do the same jobs well. Latencies are compared over the second half of each
sixth. Exit code 1 on any outcome but a right answer, and where a server takes more in the last third than in the first.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import slow_clients
from benchmarks.asking import model
from benchmarks.servers import Usage, Watched, client_config
from ditto.client.client import Client
from ditto.client.local_cluster import _free_ports
from ditto.names import SERVERS
from ditto.net.emulation import Network

PROCESSES, PARTS = 4, 6
SLACK = Usage(megabytes=32, threads=16, files=16)  # not derived; what each job leaves is beyond it in a minute


class Job(NamedTuple):
    client: int
    began: float
    asked: float
    ended: float
    busy: int
    outcome: str
    message: str


def percentiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p90": round(cuts[89], 3), "p99": round(cuts[98], 3)}


@contextlib.contextmanager
def loaded(
    root: Path, clients: int, queue_limit: int, slots: int = 4, network: Network | None = None
) -> Iterator[tuple[Watched, list[subprocess.Popen[str]], Path]]:
    """The cluster with its model, and clients that wait for their word; all gone when the block ends."""
    cluster, processes = Watched(root), list[subprocess.Popen[str]]()
    try:
        cluster.configure(ports=_free_ports(), network=network)
        cluster.prepare({"coordinator": {"queue_limit": queue_limit, "jobs_at_once": slots}})
        cluster.up(180)
        with Client(client_config(cluster.config_path("client"))) as client:
            client.share_model(model("bert").description, model("bert").weights)
            names = [f"client{i}" for i in range(PROCESSES)]
            configs = [cluster.add_client(name) for name in (*names, "slow")]
            for name in (*names, "slow"):
                client.grant_model("bert", name)
        cuts = [clients * i // PROCESSES for i in range(PROCESSES + 1)]
        for config, first, last in zip(configs, cuts, cuts[1:], strict=False):
            if first == last:
                continue
            command = asking_command(config, first, last - first)
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield cluster, processes, configs[-1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        cluster.down()


def asking_command(config: Path, first: int, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.load_client", str(config), str(first), str(count)]


def run(
    cluster: Watched, processes: list[subprocess.Popen[str]], slow: Path, seconds: float
) -> tuple[list[Job], list[tuple[float, dict[str, Usage]]], dict[str, dict[str, int]], float]:
    """All jobs, what the servers took and when, what the two slow clients met, and when it began."""
    jobs: list[Job] = []
    usage: list[tuple[float, dict[str, Usage]]] = []

    def collect(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            jobs.append(Job(**json.loads(line)))

    readers = [threading.Thread(target=collect, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    began = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    two = slow_clients.both(client_config(slow))
    try:
        while (now := time.monotonic() - began) < seconds:
            for one in two:
                (one.badly.set if badly(now, seconds) else one.badly.clear)()
            usage.append((now, cluster.usage()))
            time.sleep(min(2.0, seconds / 60))
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for one in two:
            one.stop()
    for reader in readers:
        reader.join(120)
    return jobs, usage, {name: dict(one.outcomes) for name, one in zip(("unread", "trickle"), two, strict=True)}, began


def badly(now: float, seconds: float) -> bool:
    return int(now / seconds * PARTS) % 2 == 1


def compared(jobs: list[Job], began: float, seconds: float) -> dict[str, dict[str, float]]:
    """Latencies and pace with both clients behaving well and badly, over the second half of each part."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for job in jobs:
        at = (job.ended - began) / seconds * PARTS
        if at < PARTS and at % 1 >= 0.5:
            found[badly(job.ended - began, seconds)].append(job.ended - job.asked)
    half = seconds / 4  # half of half of the time
    return {
        "badly" if bad else "well": {"jobs_per_second": round(len(of) / half, 2)} | percentiles(of)
        for bad, of in found.items()
    }


def grown(usage: list[tuple[float, dict[str, Usage]]]) -> list[str]:
    """Medians of the second sixth and of the last: the first one fills pools and caches."""
    size = max(1, len(usage) // PARTS)
    early, late = usage[size : 2 * size] or usage[:1], usage[-size:]
    wrong = []
    for role in SERVERS:
        for name, slack in zip(Usage._fields, SLACK, strict=True):
            first, last = (statistics.median(getattr(of[role], name) for _, of in part) for part in (early, late))
            if last > first + slack:
                wrong.append(f"{role} takes {last:.0f} {name}; early on it took {first:.0f}")
    return wrong


def report(
    jobs: list[Job], usage: list[tuple[float, dict[str, Usage]]], slow: dict[str, dict[str, int]], began: float,
    seconds: float, queue_limit: int, clients: int,
) -> dict[str, Any]:  # fmt: skip
    by_client: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        by_client[job.client].append(job)
    counts = sorted(len(of) for of in by_client.values())
    p99 = sorted(percentiles([j.ended - j.began for j in of]).get("p99", 0.0) for of in by_client.values())
    wrong = [f"{job.outcome}: {job.message}" for job in jobs if job.outcome != "right"]
    unserved = [number for number in range(clients) if number not in by_client]
    if seconds >= 300:  # one round of all takes a while, and a second one who was refused
        wrong += [f"client {number} got no answer" for number in unserved]
    wrong += grown(usage)
    return {
        "clients": clients, "seconds": seconds, "queue_limit": queue_limit, "jobs": len(jobs),
        "outcomes": dict(Counter(job.outcome for job in jobs)),
        "busy": sum(job.busy for job in jobs), "jobs_refused_at_first": sum(job.busy > 0 for job in jobs),
        "jobs_per_second": round(len(jobs) / seconds, 2),
        "seconds_of_the_accepted_attempt": percentiles([job.ended - job.asked for job in jobs]),
        "seconds_since_first_asked": percentiles([job.ended - job.began for job in jobs]),
        "fairness": {
            "clients_without_an_answer": len(unserved),
            "jobs_per_client": [counts[0], counts[len(counts) // 2], counts[-1]],
            "p99_per_client": [p99[0], p99[len(p99) // 2], p99[-1]],
        },
        "two_slow_clients": compared(jobs, began, seconds) | {"outcomes": slow},
        "peak": {role: Usage(*(max(getattr(of[role], name) for _, of in usage) for name in Usage._fields))._asdict()
                 for role in SERVERS},
        "over_time": [
            {"seconds": round(at, 1)} | {role: list(of[role]) for role in SERVERS}
            for at, of in usage[:: max(1, len(usage) // 12)]
        ],
        "breaches": list(dict.fromkeys(wrong)),
    }  # fmt: skip


def tables(found: dict[str, Any]) -> Iterator[Table | str]:
    table = Table("seconds", "jobs/s", "p50", "p90", "p99")
    for name, of in (
        ("of the accepted attempt", found["seconds_of_the_accepted_attempt"]),
        ("since first asked, refusals included", found["seconds_since_first_asked"]),
        ("beside two clients that behave well", found["two_slow_clients"]["well"]),
        ("beside two that are slow", found["two_slow_clients"]["badly"]),
    ):
        pace = of.get("jobs_per_second", found["jobs_per_second"])
        table.add_row(name, f"{pace:.2f}", *(f"{of.get(p, 0):.2f}" for p in ("p50", "p90", "p99")))
    yield table
    table = Table("server", *(f"{name}, over time; peak" for name in Usage._fields))
    for role in SERVERS:
        shown = []
        for i, name in enumerate(Usage._fields):
            series = " ".join(f"{point[role][i]:.0f}" for point in found["over_time"][::3])
            shown.append(f"{series}; {found['peak'][role][name]:.0f}")
        table.add_row(role, *shown)
    yield table
    yield (
        f"{found['clients']} clients, {found['seconds']:.0f} s, {found['jobs']} jobs: {found['outcomes']}; refused as "
        f"busy {found['busy']} times (queue_limit {found['queue_limit']}). A client's jobs, least, median, most: "
        f"{found['fairness']['jobs_per_client']}; its p99: {found['fairness']['p99_per_client']}. "
        f"The slow two: {found['two_slow_clients']['outcomes']}"
    )
    yield from (f"BREACH: {line}" for line in found["breaches"])


def main(
    seconds: Annotated[float, typer.Option(min=6)] = 600,
    clients: Annotated[int, typer.Option(min=PROCESSES)] = 64,
    queue_limit: Annotated[int, typer.Option(help="Jobs that may wait at the coordinator.")] = 48,
    slots: Annotated[int, typer.Option(help="Jobs that run at once.")] = 4,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    root = Path(tempfile.mkdtemp(prefix="load-"))
    try:
        with loaded(root, clients, queue_limit, slots) as (cluster, processes, slow):
            found = report(*run(cluster, processes, slow, seconds), seconds, queue_limit, clients)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for part in tables(found):
            Console(width=120).print(part, markup=False)
    raise typer.Exit(1 if found["breaches"] else 0)


if __name__ == "__main__":
    typer.run(main)

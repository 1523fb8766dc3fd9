"""Ditto's built-in network shaping against the kernel's: the same job both ways, interleaved.

    NETLAB=path/to/netlab.sh python benchmarks/namespaces.py --networks lan,wan --congestion cubic --out result.json

As root, on Linux, with iproute2, iptables and ping. NETLAB is a script that knows `up PROFILE` (lan, wan, or raw: not
shaped) and `down`. It makes network namespaces nl-p0, nl-p1 and nl-dl whose eth0 are 10.77.0.1, .2 and .3, joins them
by a bridge and shapes every eth0 to the profile, by netem, or where the kernel has none by tbf and a user-space delay
(environment NFD_OPTS; see `calibrate`).

Who runs where. Parties and dealer run in the namespaces and talk to each other over the shaped addresses. Client and
coordinator stay outside and reach each server over a veth pair of its own that nothing shapes: the built-in shaping
leaves their traffic alone, too (ditto.network), and with it on a shaped link, wall seconds would compare two different
things. What a party asks of the dealer is shaped here and not in the built-in way: half a round trip for each job.

One thing is changed in what the script made: the built-in shaping gives the dealer a link of its own to each party,
the script one for both, which would halve the offline phase's bandwidth. `separate` splits it.

Both clusters run all the time with the same model; jobs alternate between them. Whatever happens, processes and
namespaces are gone at the end, except after SIGKILL: then `netlab.sh down`, and end the servers in the namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ditto.certs import ROLES, init_certs
from ditto.cli.bench_presets import machine
from ditto.client import Client
from ditto.cluster import Cluster, embedded
from ditto.config import DEFAULT_PORTS
from ditto.models import encode_inputs, random_model
from ditto.models.importer import random_batch
from ditto.network import Network, network

NODES = {"party0": "nl-p0", "party1": "nl-p1", "dealer": "nl-dl"}
SHAPED = {"party0": "10.77.0.1", "party1": "10.77.0.2", "dealer": "10.77.0.3"}
# Control: one /30 for each node out of 198.18.0.0/15, which RFC 2544 keeps for benchmarks; .1 is outside, .2 inside.
CONTROL = {role: f"198.18.77.{4 * i}" for i, role in enumerate(NODES)}
PROFILES = {"lan": "lan", "wan": "wan", "loopback": "raw"}  # Ditto's name: the script's
FIGURES = ("online", "offline", "wall")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
CONGESTION = ALLOWED.with_name("tcp_congestion_control")
BLAST = """
import socket, sys, time
one, size = socket.socket(), int(float(sys.argv[3]))
one.connect((sys.argv[1], int(sys.argv[2])))
one.sendall(bytes(size // 4)); one.recv(1)  # slow start is over
began = time.monotonic()
one.sendall(bytes(size)); one.recv(1)
print(8e-6 * size / (time.monotonic() - began))
"""
SINK = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2]))); print(flush=True)
one, size = server.accept()[0], int(float(sys.argv[3]))
for want in (size // 4, size):
    while want: want -= len(one.recv(min(want, 1 << 20)))
    one.sendall(b"x")
"""


class Trouble(Exception):
    """The comparison cannot run; the text says what is missing."""


def sh(*command: str, env: dict[str, str] | None = None) -> str:
    """Standard output of a command. Raises Trouble with its standard error."""
    # A session of its own: Ctrl-C must not end half of what the cleaning up needs.
    done = subprocess.run(command, capture_output=True, text=True, env=env, start_new_session=True)
    if done.returncode:
        raise Trouble(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    return done.stdout


def inside(role: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", NODES[role], *command]


def missing(netlab: Path | None) -> list[str]:
    """What this machine lacks, in words."""
    lacks = [] if platform.system() == "Linux" else ["Linux: network namespaces"]
    lacks += [] if os.geteuid() == 0 else ["root: namespaces and shaping need it"]
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("iptables", "iptables"), ("ping", "iputils-ping")):
        lacks += [] if shutil.which(tool) else [f"{tool} (package {package})"]
    if netlab is None:
        lacks.append("a script that makes the namespaces: --netlab or NETLAB")
    elif not os.access(netlab, os.X_OK):
        lacks.append(f"{netlab}: no such program")
    return lacks


# The namespaces -----------------------------------------------------------------------------------


@contextlib.contextmanager
def congestion_control(name: str | None) -> Iterator[None]:
    """Let namespaces use a congestion control while the block runs: the host decides what is allowed."""
    before = ALLOWED.read_text().split()
    if name is None or name in before:
        yield
        return
    try:
        ALLOWED.write_text(" ".join([*before, name]))
    except OSError as error:
        raise Trouble(f"congestion control {name}: {error.strerror}; does the kernel have it?") from None
    try:
        yield
    finally:
        ALLOWED.write_text(" ".join(before))


@contextlib.contextmanager
def namespaces(netlab: Path, emulated: Network, congestion: str | None, burst: str, half_us: int) -> Iterator[str]:
    """The script's namespaces with this profile, control links added, the dealer's links apart; yields who shapes.

    `half_us` is the one-way delay in microseconds that the user-space delay gets; netem takes the profile's.
    """
    taken = sorted({line.split()[0] for line in sh("ip", "netns", "list").splitlines()} & set(NODES.values()))
    if taken:
        raise Trouble(f"{', '.join(taken)} already there: another run? If not: {netlab} down")
    with tempfile.TemporaryDirectory(prefix="ditto-netlab-") as run, contextlib.ExitStack() as stack:
        env = os.environ | {"NETLAB_RUN": run, "CC": congestion or "", "BURST": burst, "NODES": "p0 p1 dl"}
        env["NFD_OPTS"] = f"{os.environ.get('NFD_OPTS', '')} -d {half_us}"
        stack.callback(sh, str(netlab), "down", env=env)
        log = Path(run) / "up.log"
        with log.open("w") as out:  # a file: the delay processes keep it open, a pipe would never end
            up = subprocess.run(
                [netlab, "up", PROFILES[emulated.name]], stdout=out, stderr=out, env=env, start_new_session=True
            )
        if up.returncode:
            raise Trouble(f"{netlab} up: {log.read_text().strip()}")
        for i, (role, node) in enumerate(NODES.items()):
            outside = f"dittoctl{i}"
            stack.callback(subprocess.run, ["ip", "link", "del", outside], capture_output=True)
            prefix = CONTROL[role].rsplit(".", 1)[0]
            low = int(CONTROL[role].rsplit(".", 1)[1])
            sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "ctl0", "netns", node)
            sh("ip", "addr", "add", f"{prefix}.{low + 1}/30", "dev", outside)
            sh("ip", "link", "set", outside, "up")
            sh("ip", "-n", node, "addr", "add", f"{prefix}.{low + 2}/30", "dev", "ctl0")
            sh("ip", "-n", node, "link", "set", "ctl0", "up")
        kind = "netem" if "netem" in sh("tc", "-n", NODES["party0"], "qdisc", "show", "dev", "eth0") else "tbf"
        if emulated.bandwidth_mbps is None:
            yield "none"
            return
        separate(kind, emulated, burst)
        yield kind if kind == "netem" else f"tbf (burst {burst}) + nfdelay {half_us} us"


def separate(kind: str, emulated: Network, burst: str) -> None:
    """Give the dealer's eth0 one shaped queue for each party instead of one for both."""
    rate = f"{emulated.bandwidth_mbps}mbit"
    queue = 50e3 * (emulated.bandwidth_mbps or 0) / 8  # bytes in 50 ms, as the script's queues
    leaf = (
        f"netem delay {emulated.rtt_ms / 2}ms limit 100000" if kind == "netem" else f"bfifo limit {queue + 262144:.0f}"
    )
    tc = ["tc", "-n", NODES["dealer"], "qdisc"]
    # What no filter below takes (ARP) is not shaped.
    sh(*tc, *"replace dev eth0 root handle 1: htb".split())
    for band, role in ((1, "party0"), (2, "party1")):
        shaped = f"add dev eth0 parent 1: classid 1:{band} htb rate {rate} burst {burst} cburst {burst} quantum 60000"
        match = f"add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst {SHAPED[role]}/32 flowid 1:{band}"
        sh(*tc[:3], "class", *shaped.split())
        sh(*tc, *f"add dev eth0 parent 1:{band} handle 1{band}: {leaf}".split())
        sh(*tc[:3], "filter", *match.split())


def round_trips(text: str) -> list[float]:
    """The milliseconds of every answer in the output of ping."""
    return [float(found) for found in re.findall(r"time=([\d.]+) ?ms", text)]


def rtt(start: str, end: str, count: int = 40) -> float:
    """Median round trip in ms between two nodes. `-U`: until the program has the answer, which the delay is part of."""
    found = round_trips(sh(*inside(start, "ping", "-U", "-i", "0.05", "-c", str(count), SHAPED[end])))
    if not found:
        raise Trouble(f"{end} does not answer {start}")
    return statistics.median(found)


def rate(start: str, end: str, size: float) -> float:
    """Mbit/s of one TCP connection that sends `size` bytes of payload between two nodes, after a quarter of it."""
    where = (SHAPED[end], "5201", str(size))
    with subprocess.Popen(inside(end, sys.executable, "-c", SINK, *where), stdout=subprocess.PIPE) as sink:
        try:
            assert sink.stdout is not None
            sink.stdout.readline()
            return float(sh(*inside(start, sys.executable, "-c", BLAST, *where)))
        finally:
            sink.kill()


def calibrate(netlab: Path, emulated: Network, congestion: str | None, burst: str, tolerance: float = 0.03) -> int:
    """The one-way delay in us with which two nodes measure the profile's round trip.

    The user-space delay adds what waking it up takes, some 0.1 ms, which the LAN profile has to be lowered by. netem
    ignores the result.
    """
    half = want = round(emulated.rtt_ms * 500)
    for _ in range(4):
        with namespaces(netlab, emulated, congestion, burst, half) as kind:
            measured = rtt("party0", "party1")
        if "nfdelay" not in kind or abs(measured / emulated.rtt_ms - 1) <= tolerance:
            break
        half = max(0, half - round(measured * 500) + want)
    return half


# The servers --------------------------------------------------------------------------------------


class Separated(Cluster):
    """A cluster whose parties and dealer run in the namespaces."""

    def _command(self, role: str) -> list[str]:
        command = super()._command(role)
        return inside(role, *command) if role in NODES else command

    def spread(self, threads: int) -> None:
        """Certificates and configurations. They differ in what a role calls the others."""
        init_certs(self.certs, [])  # every server is checked by its role's name, whatever its address
        self.configs.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        for role in ROLES:
            files = {"ca": "ca.pem", "cert": f"{role}.pem", "key": f"{role}.key"}
            config: dict[str, Any] = {
                "role": role,
                "peers": {"coordinator": coordinator} | {node: addresses(role)[node] for node in NODES},
                "tls": {key: str(self.certs / name) for key, name in files.items()},
            }
            if role != "client":
                listen = f"0.0.0.0:{DEFAULT_PORTS[role]}" if role in NODES else coordinator
                config |= {"listen": listen, "data_dir": str(self.root / "data" / role), "threads": threads}
            self.config_path(role).write_text(yaml.safe_dump(config, sort_keys=False))


def addresses(role: str) -> dict[str, str]:
    """Where `role` calls the parties and the dealer: from a namespace over shaped links, from outside over control."""
    if role in NODES:
        return {node: f"{SHAPED[node]}:{DEFAULT_PORTS[node]}" for node in NODES}
    low = {node: CONTROL[node].rsplit(".", 1) for node in NODES}
    return {node: f"{low[node][0]}.{int(low[node][1]) + 2}:{DEFAULT_PORTS[node]}" for node in NODES}


@contextlib.contextmanager
def separated(threads: int) -> Iterator[Cluster]:
    """`ditto.cluster.embedded`, spread over the namespaces."""
    root = Path(tempfile.mkdtemp(prefix="ditto-"))
    cluster = Separated(root)
    try:
        cluster.spread(threads)
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


# The comparison -----------------------------------------------------------------------------------


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians and extremes of each figure both ways, and the built-in median over the namespaces' one."""
    ways = {way: {name: summary([run[name] for run in done]) for name in FIGURES} for way, done in runs.items()}
    ratios = {name: ways["built-in"][name]["median"] / ways["namespaces"][name]["median"] for name in FIGURES}
    return ways | {"ratio": ratios}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each network and figure."""
    lines = ["| network | seconds | namespaces | built-in | built-in / namespaces |", "|---|---|---|---|---|"]
    for result in results:
        for name in FIGURES:
            cells = (result["seconds"][way][name] for way in ("namespaces", "built-in"))
            shown = " | ".join(f"{c['median']:.2f} ({c['min']:.2f} to {c['max']:.2f})" for c in cells)
            lines.append(f"| {result['network']} | {name} | {shown} | {result['seconds']['ratio'][name]:.3f} |")
    return "\n".join(lines)


def one(client: Client, spec: dict[str, Any], seq: int) -> dict[str, Any]:
    """One job: the seconds of FIGURES, and what the closed form needs."""
    batch = random_batch(1, seq)
    report = client.infer(spec["name"], lambda p: encode_inputs(spec, p, batch), 1, seq).report
    seconds = {"online": report["online"]["seconds"], "offline": report["offline"]["seconds"]}
    costs = {"rounds": report["online"]["rounds"], "bytes_sent": max(report["online"]["bytes_sent"])}
    return seconds | {"wall": report["wall_seconds"], "bytes_from_dealer": report["offline"]["bytes_to_party"]} | costs


def measure(
    netlab: Path, emulated: Network, congestion: str | None, burst: str,
    model: tuple[dict[str, Any], dict[str, Any]], seq: int, repeat: int, threads: int,
) -> dict[str, Any]:  # fmt: skip
    """`repeat` jobs each way on one network, after one to warm up."""
    spec, weights = model
    half = calibrate(netlab, emulated, congestion, burst) if emulated.rtt_ms else 0
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        kind = stack.enter_context(namespaces(netlab, emulated, congestion, burst, half))
        # 2 s of the profile's rate, half a second of an unlimited one
        size = 2.5e5 * emulated.bandwidth_mbps if emulated.bandwidth_mbps else 1e9
        links = [("party0", "party1"), ("party1", "party0"), ("dealer", "party0"), ("dealer", "party1")]
        lab = {
            "shaping": kind,
            "congestion_control": sh(*inside("party0", "cat", str(CONGESTION))).strip(),
            "rtt_ms": {f"{a} {b}": rtt(a, b) for a, b in links},
            "tcp_mbps": {f"{a} {b}": rate(a, b, size) for a, b in links},
        }
        clusters = {"namespaces": stack.enter_context(separated(threads))}
        clusters["built-in"] = stack.enter_context(embedded(threads=threads, network=emulated))
        clients = {way: stack.enter_context(Client(c.client_config())) for way, c in clusters.items()}
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in clients}
        for client in clients.values():
            client.share_model(spec, weights)
            one(client, spec, seq)  # connections stand, windows are open
        for i in range(repeat):
            for way in list(clients)[:: 1 - 2 * (i % 2)]:
                runs[way].append(done := one(clients[way], spec, seq))
                said = ", ".join(f"{done[name]:.2f} s {name}" for name in FIGURES)
                typer.echo(f"{emulated.name} {i + 1}/{repeat} {way}: {said}", err=True)
    costs = runs["built-in"][0]
    formula = costs["rounds"] * emulated.rtt_ms / 2000
    formula += 8e-6 * costs["bytes_sent"] / emulated.bandwidth_mbps if emulated.bandwidth_mbps else 0
    return {
        "network": emulated.name, "profile": emulated.model_dump(), "lab": lab, "load_before": load,
        "formula_online_seconds": formula, "seconds": compare(runs), "runs": runs,
    }  # fmt: skip


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(
    netlab: Annotated[Path | None, typer.Option(envvar="NETLAB", help="The script that makes the namespaces.")] = None,
    networks: Annotated[str, typer.Option(help="lan, wan, loopback (not shaped), separated by commas.")] = "lan,wan",
    congestion: Annotated[str | None, typer.Option(help="TCP congestion control inside; default: the host's.")] = None,
    burst: Annotated[str, typer.Option(help="Bucket of tbf; what it holds skips the serialisation.")] = "128kb",
    model: str = "bert-base",
    layers: Annotated[int, typer.Option(min=1)] = 2,
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens.")] = 128,
    preset: str = "ditto",
    repeat: Annotated[int, typer.Option(min=1, help="Jobs each way.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON here.")] = None,
) -> None:
    """Print the comparison as JSON and as a table."""
    names = [name.strip() for name in networks.split(",") if name.strip()]
    try:
        if lacks := missing(netlab):
            raise Trouble("this comparison needs " + "; ".join(lacks))
        if wrong := [name for name in names if name not in PROFILES]:
            raise Trouble(f"network {wrong[0]!r}: one of {', '.join(PROFILES)}")
        assert netlab is not None
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _stop)  # clean up as for Ctrl-C
        spec, weights, _ = random_model(model, layers, seq, preset)
        results = []
        with congestion_control(congestion):
            for name in names:
                args = (netlab.resolve(), network(name), congestion, burst, (spec, weights), seq, repeat, threads)
                results.append(measure(*args))
    except Trouble as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    job = {"model": model, "layers": layers, "seq": seq, "preset": preset, "threads": threads, "repeat": repeat}
    document = {"machine": machine(), "kernel": platform.release(), "job": job, "results": results}
    document["date"] = time.strftime("%Y-%m-%d")
    text = json.dumps(document, indent=1)
    if out:
        out.write_text(text + "\n")
    typer.echo(text)
    typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)

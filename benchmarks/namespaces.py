"""Ditto's built-in network shaping against the kernel's: the same job both ways, interleaved.

    NETLAB=path/to/netlab.sh python benchmarks/namespaces.py --networks lan,wan --congestion cubic --out result.json

As root, on Linux, with iproute2, iptables and ping. NETLAB is a script that knows `up PROFILE` (lan, wan, or raw: not
shaped) and `down`. It makes network namespaces nl-p0, nl-p1 and nl-dl whose eth0 are 10.77.0.1, .2 and .3, joins them
by a bridge and shapes every eth0 to the profile, by netem, or where the kernel has none by tbf and a user-space delay
(its delay is set such that the measured round trip is the profile's).

Who runs where. Parties and dealer run in the namespaces and talk to each other over the shaped addresses. Client and
coordinator stay outside and reach each server over a veth pair of its own that nothing shapes: the built-in shaping
leaves their traffic alone, too (ditto.net.emulation), and with it on a shaped link, wall seconds would compare two
different things. What a party asks of the dealer is shaped here and not in the built-in way: half a round trip a job.

One thing is changed in what the script made: the built-in shaping gives the dealer a link of its own to each party,
the script one for both, which would halve the offline phase's bandwidth. lab.py splits it.

Both clusters run all the time with the same model; jobs alternate between them. Whatever happens, processes and
namespaces are gone at the end, except after SIGKILL: then `netlab.sh down`, and end the servers in the namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import lab
import typer
import yaml

from ditto.cli.bench_presets import machine
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, embedded
from ditto.models import Description, encode_inputs, random_batch, random_model
from ditto.names import ROLES
from ditto.net.certs import init_certs
from ditto.net.config import DEFAULT_PORTS
from ditto.net.emulation import Network, network

FIGURES = ("online", "offline", "wall")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# The servers --------------------------------------------------------------------------------------


class Separated(Cluster):
    """A cluster whose parties and dealer run in the namespaces."""

    def _command(self, role: str) -> list[str]:
        command = super()._command(role)
        return lab.inside(role, *command) if role in lab.NODES else command

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
                "peers": {"coordinator": coordinator} | {node: addresses(role)[node] for node in lab.NODES},
                "tls": {key: str(self.certs / name) for key, name in files.items()},
            }
            if role != "client":
                listen = f"0.0.0.0:{DEFAULT_PORTS[role]}" if role in lab.NODES else coordinator
                config |= {"listen": listen, "data_dir": str(self.root / "data" / role), "threads": threads}
                config["storage"] = "plaintext"  # of random weights
            self.config_path(role).write_text(yaml.safe_dump(config, sort_keys=False))


def addresses(role: str) -> dict[str, str]:
    """Where `role` calls the parties and the dealer: from a namespace over shaped links, from outside over control."""
    at = lab.SHAPED if role in lab.NODES else {node: guest for node, (_, guest) in lab.CONTROL.items()}
    return {node: f"{at[node]}:{DEFAULT_PORTS[node]}" for node in lab.NODES}


@contextlib.contextmanager
def separated(threads: int) -> Iterator[Cluster]:
    """`ditto.client.local_cluster.embedded`, spread over the namespaces."""
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


def one(client: Client, description: Description, seq: int) -> dict[str, Any]:
    """One job: the seconds of FIGURES, and what the closed form needs."""
    batch = random_batch(1, seq)
    report = client.infer(description.name, lambda p: encode_inputs(description, p, batch), 1, seq).report
    seconds = {"online": report["online"]["seconds"], "offline": report["offline"]["seconds"]}
    costs = {"rounds": report["online"]["rounds"], "bytes_sent": max(report["online"]["bytes_sent"])}
    return seconds | {"wall": report["wall_seconds"], "bytes_from_dealer": report["offline"]["bytes_to_party"]} | costs


def measure(
    setting: lab.Setting, emulated: Network, model: tuple[dict[str, Any], dict[str, Any]], seq: int, repeat: int,
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    """`repeat` jobs each way on one network, after one to warm up."""
    description, weights = model
    half = lab.calibrate(setting, emulated) if emulated.rtt_ms else 0
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        kind = stack.enter_context(lab.namespaces(setting, emulated, half))
        # 2 s of the profile's rate, half a second of an unlimited one
        size = 2.5e5 * emulated.bandwidth_mbps if emulated.bandwidth_mbps else 1e9
        links = [("party0", "party1"), ("party1", "party0"), ("dealer", "party0"), ("dealer", "party1")]
        found = {
            "shaping": kind,
            "tcp": lab.tcp_settings("party0"),
            "rtt_ms": {f"{a} {b}": lab.rtt(a, b) for a, b in links},
            "tcp_mbps": {f"{a} {b}": lab.rate(a, b, size) for a, b in links},
        }
        clusters = {"namespaces": stack.enter_context(separated(threads))}
        clusters["built-in"] = stack.enter_context(embedded(threads=threads, network=emulated))
        clients = {way: stack.enter_context(Client(c.client_config(), in_turns=True)) for way, c in clusters.items()}
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in clients}
        for client in clients.values():
            client.share_model(description, weights)
            one(client, description, seq)  # connections stand, windows are open
        for i in range(repeat):
            for way in list(clients)[:: 1 - 2 * (i % 2)]:
                runs[way].append(done := one(clients[way], description, seq))
                said = ", ".join(f"{done[name]:.2f} s {name}" for name in FIGURES)
                typer.echo(f"{emulated.name} {i + 1}/{repeat} {way}: {said}", err=True)
    costs = runs["built-in"][0]
    formula = costs["rounds"] * emulated.rtt_ms / 2000
    formula += 8e-6 * costs["bytes_sent"] / emulated.bandwidth_mbps if emulated.bandwidth_mbps else 0
    return {
        "network": emulated.name, "profile": emulated.model_dump(), "lab": found, "load_before": load,
        "formula_online_seconds": formula, "seconds": compare(runs), "runs": runs,
    }  # fmt: skip


def _stop(number: int, frame: object) -> None:
    """Unwind once; what cleans up is not interrupted."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(
    netlab: Annotated[Path | None, typer.Option(envvar="NETLAB", help="The script that makes the namespaces.")] = None,
    networks: Annotated[str, typer.Option(help="lan, wan, loopback (not shaped), separated by commas.")] = "lan,wan",
    congestion: Annotated[str | None, typer.Option(help="TCP congestion control inside; default: the host's.")] = None,
    burst: Annotated[str, typer.Option(help="Bucket of tbf; what it holds skips the serialisation.")] = "128kb",
    host_tcp: Annotated[bool, typer.Option(help="TCP buffers as on the host, or as the script sets them.")] = True,
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
        if lacks := lab.missing(netlab):
            raise lab.Trouble("this comparison needs " + "; ".join(lacks))
        if wrong := [name for name in names if name not in lab.PROFILES]:
            raise lab.Trouble(f"network {wrong[0]!r}: one of {', '.join(lab.PROFILES)}")
        assert netlab is not None
        setting = lab.Setting(netlab.resolve(), congestion, burst, host_tcp)
        for number in STOPS:
            signal.signal(number, _stop)
        description, weights, _ = random_model(model, layers, seq, preset)
        with lab.congestion_control(congestion):
            results = [measure(setting, network(name), (description, weights), seq, repeat, threads) for name in names]
    except lab.Trouble as error:
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

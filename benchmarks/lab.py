"""Network namespaces with a shaped link to each other, made by a script, and an unshaped one to the outside."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ditto.net.emulation import Network

NODES = {"party0": "nl-p0", "party1": "nl-p1", "dealer": "nl-dl"}
SHAPED = {"party0": "10.77.0.1", "party1": "10.77.0.2", "dealer": "10.77.0.3"}
# Control: the two ends of a /30 for each node, outside and inside, of 198.18.0.0/15, kept for benchmarks by RFC 2544.
CONTROL = {role: (f"198.18.77.{4 * i + 1}", f"198.18.77.{4 * i + 2}") for i, role in enumerate(NODES)}
PROFILES = {"lan": "lan", "wan": "wan", "loopback": "raw"}  # Ditto's name: the script's
SYSCTL = Path("/proc/sys/net/ipv4")
ALLOWED = SYSCTL / "tcp_allowed_congestion_control"
TCP = ("tcp_congestion_control", "tcp_rmem", "tcp_wmem", "tcp_slow_start_after_idle")
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


@dataclass(frozen=True)
class Setting:
    """What makes the namespaces and how."""

    netlab: Path
    congestion: str | None  # TCP congestion control inside; None: the host's
    burst: str  # the bucket of tbf, as tc reads it
    host_tcp: bool  # TCP's buffers and its restart after idling as on the host, not as the script sets them


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
def namespaces(setting: Setting, emulated: Network, half_us: int) -> Iterator[str]:
    """The script's namespaces with this profile, control links added, the dealer's links apart; yields who shapes.

    `half_us` is the one-way delay in microseconds that the user-space delay gets; netem takes the profile's.
    """
    netlab, burst = setting.netlab, setting.burst
    taken = sorted({line.split()[0] for line in sh("ip", "netns", "list").splitlines()} & set(NODES.values()))
    if taken:
        raise Trouble(f"{', '.join(taken)} already there: another run? If not: {netlab} down")
    with tempfile.TemporaryDirectory(prefix="ditto-netlab-") as run, contextlib.ExitStack() as stack:
        env = os.environ | {"NETLAB_RUN": run, "CC": setting.congestion or "", "BURST": burst, "NODES": "p0 p1 dl"}
        env["NFD_OPTS"] = f"{os.environ.get('NFD_OPTS', '')} -d {half_us}"
        stack.callback(sh, str(netlab), "down", env=env)
        log = Path(run) / "up.log"
        with log.open("w") as out:  # a file: the delay processes keep it open, a pipe would never end
            command = [netlab, "up", PROFILES[emulated.name]]
            up = subprocess.run(command, stdout=out, stderr=out, env=env, start_new_session=True)
        if up.returncode:
            raise Trouble(f"{netlab} up: {log.read_text().strip()}")
        for pid in Path(run).glob("nfd-*.pid"):
            # netem would not wait for a core, so the user-space delay must not either
            os.sched_setscheduler(int(pid.read_text()), os.SCHED_FIFO, os.sched_param(10))
        for i, (role, node) in enumerate(NODES.items()):
            outside, (host, guest) = f"dittoctl{i}", CONTROL[role]
            stack.callback(subprocess.run, ["ip", "link", "del", outside], capture_output=True)
            sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "ctl0", "netns", node)
            sh("ip", "addr", "add", f"{host}/30", "dev", outside)
            sh("ip", "link", "set", outside, "up")
            sh("ip", "-n", node, "addr", "add", f"{guest}/30", "dev", "ctl0")
            sh("ip", "-n", node, "link", "set", "ctl0", "up")
            for name in TCP[1:] if setting.host_tcp else ():
                sh(*inside(role, "sysctl", "-qw", f"net.ipv4.{name}={(SYSCTL / name).read_text().strip()}"))
        kind = "netem" if "netem" in sh("tc", "-n", NODES["party0"], "qdisc", "show", "dev", "eth0") else "tbf"
        if emulated.bandwidth_mbps is None:
            yield "none"
            return
        separate(kind, emulated, burst)
        yield kind if kind == "netem" else f"tbf (burst {burst}) + nfdelay {half_us} us"


def tcp_settings(role: str) -> dict[str, str]:
    """TCP's knobs in a node's namespace."""
    return {name: " ".join(sh(*inside(role, "cat", str(SYSCTL / name))).split()) for name in TCP}


def separate(kind: str, emulated: Network, burst: str) -> None:
    """Give the dealer's eth0 one shaped queue for each party instead of one for both."""
    rate = f"{emulated.bandwidth_mbps}mbit"
    queue = round(6250 * (emulated.bandwidth_mbps or 0)) + 262144  # bytes in 50 ms, as in the script's own queues
    leaf = f"netem delay {emulated.rtt_ms / 2}ms limit 100000" if kind == "netem" else f"bfifo limit {queue}"

    def tc(what: str, rest: str) -> None:
        sh("tc", "-n", NODES["dealer"], what, *rest.split())

    tc("qdisc", "replace dev eth0 root handle 1: htb")  # what no filter below takes (ARP) is not shaped
    for band, role in ((1, "party0"), (2, "party1")):
        shaped = f"htb rate {rate} burst {burst} cburst {burst} quantum 60000"
        tc("class", f"add dev eth0 parent 1: classid 1:{band} {shaped}")
        tc("qdisc", f"add dev eth0 parent 1:{band} handle 1{band}: {leaf}")
        match = f"u32 match ip dst {SHAPED[role]}/32 flowid 1:{band}"
        tc("filter", f"add dev eth0 parent 1: protocol ip prio 1 {match}")


def round_trips(text: str) -> list[float]:
    """The milliseconds of every answer in the output of ping."""
    return [float(found) for found in re.findall(r"time=([\d.]+) ?ms", text)]


def rtt(start: str, end: str, count: int = 60) -> float:
    """Median round trip in ms between two nodes. `-U`: until the program has the answer, which the delay is part of."""
    found = round_trips(sh(*inside(start, "ping", "-U", "-i", "0.02", "-c", str(count), SHAPED[end])))
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


def calibrate(setting: Setting, emulated: Network, tolerance: float = 0.03) -> int:
    """The one-way delay in us with which two nodes measure the profile's round trip, or the best of six.

    The user-space delay adds what waking it up takes, some 0.1 ms, by which the LAN profile has to be lowered. netem
    ignores the result. On a busy machine the figures scatter; `rtt_ms` in the results says what came of it.
    """
    half = round(emulated.rtt_ms * 500)
    best, least = half, float("inf")
    for _ in range(6):
        with namespaces(setting, emulated, half) as kind:
            off = rtt("party0", "party1") - emulated.rtt_ms
        if abs(off) < least:
            best, least = half, abs(off)
        if "nfdelay" not in kind or least <= tolerance * emulated.rtt_ms:
            break
        half = max(0, best - round((off if half == best else off / 2) * 500))
    return best

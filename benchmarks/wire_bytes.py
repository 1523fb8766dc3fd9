"""Counted bytes against those of the operating system's loopback interface, over one job.

    unshare -rn sh -c 'ip link set lo up && python benchmarks/wire_bytes.py --model bert-base --layers 2'

A network namespace of its own (`unshare -rn`) keeps other traffic off the interface; without one, what else talks over
loopback counts too. Traffic without a job is measured before and after, and subtracted by the second.

Counted: payload and framing of both directions of the peer link and of both dealer links (the job's `traffic`), and the
shares of inputs and answers. Not counted but estimated: every lower layer (below), and control, of which only the
layers' measurement rows have a size worth naming: each goes from a party to the coordinator and on to the client.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import psutil
import typer

from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.ledger import Row
from ditto.engine.program import Program
from ditto.models import encode_inputs, random_batch, random_model
from ditto.net.messages import ledger_to_message

RECORD = 16384  # bytes of one TLS record and, by default, of one HTTP/2 frame
TLS = 5 + 1 + 16  # of TLS 1.3: header, content type, tag
HTTP2 = 9
SEGMENT = 65483  # what one packet of loopback's 65536 bytes carries
TCP = 20 + 20 + 12  # IPv4 and TCP headers, time stamps among them
IDLE = 5.0


def lo_bytes() -> int:
    """Each packet on loopback counts once as sent and once as received: one of the two."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def idle_rate(seconds: float) -> float:
    before, began = lo_bytes(), time.perf_counter()
    time.sleep(seconds)
    return (lo_bytes() - before) / (time.perf_counter() - began)


def below(nbytes: float, messages: float) -> dict[str, float]:
    """Estimate of what HTTP/2, TLS and TCP/IP add to `nbytes` in `messages` messages: headers of full records and
    segments, and for each message one more of each; as many acknowledgements as segments."""
    return {
        "http2": HTTP2 * nbytes / RECORD,
        "tls": TLS * (nbytes / RECORD + messages),
        "tcp_ip": 2 * TCP * (nbytes / SEGMENT + messages),
    }


def measure(model: str, layers: int | None, seq: int, preset: str, repeat: int) -> dict[str, Any]:
    description, weights, _ = random_model(model, layers, seq, preset)
    batch = random_batch(1, seq)
    programs: list[Program] = []

    def inputs(program: Program) -> dict[str, Any]:
        programs.append(program)
        return encode_inputs(description, program, batch)

    rows = 0

    def event(message: dict[str, Any]) -> None:
        nonlocal rows
        ledgers = ([Row(**({"layer": None} | row)) for row in party] for party in message.get("parties", []))
        rows += sum(ledger_to_message(ledger).ByteSize() for ledger in ledgers)

    jobs = []
    with embedded() as cluster, Client(cluster.client_config(), in_turns=True) as client:
        client.share_model(description, weights)
        client.infer(description.name, inputs, 1, seq)  # connections stand, windows are open
        for _ in range(repeat):
            rows, idle = 0, idle_rate(IDLE)
            before, began = lo_bytes(), time.perf_counter()
            report = client.infer(description.name, inputs, 1, seq, event).report
            time.sleep(0.5)  # late acknowledgements and the calls that end the job
            moved, seconds = lo_bytes() - before, time.perf_counter() - began
            idle = (idle + idle_rate(IDLE)) / 2
            jobs.append(compare(report, programs[-1], moved, idle * seconds, 2 * rows))
    return {"model": model, "layers": layers, "seq": seq, "preset": preset, "jobs": jobs}


def compare(report: dict[str, Any], program: Program, moved: int, idle: float, rows: int) -> dict[str, Any]:
    parties = list(report["traffic"].values())
    links = {part: sum(p["sent"][part] + p["from_dealer"][part] for p in parties) for part in ("payload", "framing")}
    # party 0 expands its share of the inputs from a seed; both parties send their share of the answer
    shares = sum(w.nbytes for w in program.inputs.values()) + 2 * sum(w.nbytes for w in program.outputs.values())
    counted = sum(links.values()) + shares
    messages = sum(p["rounds"] for p in parties) + sum(p["from_dealer"]["payload"] for p in parties) / (1 << 20)
    lower = below(counted, messages)
    estimate = counted + rows + sum(lower.values())
    measured = moved - idle
    return {
        "loopback_bytes": moved,
        "idle_bytes": round(idle),
        "links": links,
        "shares_of_inputs_and_answers": shares,
        "counted": counted,
        "control_rows": rows,
        "lower_layers_estimate": {name: round(value) for name, value in lower.items()},
        "measured_by_counted": measured / counted,
        "measured_by_estimate": measured / estimate,
    }


def main(
    model: str = "bert-tiny",
    layers: Annotated[int | None, typer.Option(help="Default: the shape's.")] = None,
    seq: int = 128,
    preset: str = "ditto",
    repeat: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    typer.echo(json.dumps(measure(model, layers, seq, preset, repeat), indent=2))


if __name__ == "__main__":
    typer.run(main)

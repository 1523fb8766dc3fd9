"""Predicted and measured seconds of shapes on networks, interleaved; ratios of the two.

    python -m benchmarks.plan_check [--networks loopback,lan,wan] [--shapes small,minilm] [--repeat 3] [--layers]
        [--machine FILE] [--out FILE.json] [--operations]

Shapes: two layers of 256 with 64 tokens, and all-MiniLM-L6-v2's with 128, random weights with that model's ranges. The
machine is measured first unless a profile is given (and written to FILE, with --measure); keep it quiet for all of it.
Every job of a network runs before the next round begins, so that whatever else happens falls on all of them. Medians,
and the machine's load when each network's jobs were over. With --layers a line for each layer.

Processor time says something on a busy machine, too: of the servers, beside each network's jobs (mean of all that are
run in turns); and with --operations, instead of jobs, of every program's operations by role, on one thread of this
process. What a role's operations take is predicted by rates of their kinds, which were measured on other shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.program import Program
from ditto.files import read_json
from ditto.models import Description, Plan, compile_stage, encode_inputs, random_batch
from ditto.models.architecture import Tensors
from ditto.models.description import Dimensions, layer_ranges
from ditto.models.random import random_weights, scaled_model
from ditto.models.tokenizer import Batch
from ditto.names import PARTIES
from ditto.net.emulation import network
from ditto.planning import machine as machines
from ditto.planning.forecast import Demand, Forecast, demands, forecast, overlapping, total, whole
from ditto.planning.machine import Machine
from ditto.planning.measure import busy, measure, quickest
from ditto.planning.stopwatch import ROLES, stopwatch
from ditto.ring.malloc import tune_memory

RANGES = Path(__file__).parent / "ranges" / "all-minilm-l6-v2.json"
SHAPES = {"small": (2, 256, 4, 1024, 64), "minilm": (6, 384, 12, 1536, 128)}  # layers, hidden, heads, inner, tokens
PHASES = ("online", "offline")
WAYS = ("turns", "ahead")  # a layer is prepared and run, which shows the phases; prepared ahead, which jobs do


def model_of(name: str) -> tuple[Description, Tensors, Batch]:
    layers, hidden, heads, inner, tokens = SHAPES[name]
    d = Dimensions(
        hidden=hidden, layers=layers, heads=heads, inner=inner, vocabulary=30_522, positions=512, token_types=2,
        embedding=hidden, epsilon=1e-12,
    )  # fmt: skip
    checkpoint = random_weights("BertModel", d)
    description, weights, _ = scaled_model(checkpoint, name, tokens, real=layer_ranges(read_json(RANGES)))
    return description, weights, random_batch(1, tokens)


def inputs_of(description: Description, batch: Batch, program: Program) -> Tensors:
    return encode_inputs(description, program, batch)


def servers_work(layers: Sequence[Demand], machine: Machine) -> dict[str, float]:
    """Processor seconds of one job at the dealer, and at a party."""
    sums = sum(layers, Demand())
    party = sums.prepare + sums.online + sums.rounds * machine.round + sums.sent * machine.sent
    dealt = sums.dealt * machine.dealt
    return {"dealer": sums.deal + dealt, "party": party + dealt / 2}


def operations(shapes: Sequence[str], machine: Machine, repeat: int) -> list[dict[str, Any]]:
    """Seconds of one thread that a program's operations take, by role: predicted by their kinds, and measured."""
    tune_memory()
    rows = []
    for name in shapes:
        description, _, batch = model_of(name)
        program = compile_stage(description, Plan(1, batch.shape[1]))
        samples = quickest([stopwatch(program) for _ in range(repeat)])
        layers = sum((whole(parts) for parts in demands(program, machine)), Demand())
        for role in ROLES:
            row = {"model": name, "role": role, "predicted": getattr(layers, role)}
            rows.append(row | {"measured": sum(sample.seconds[role] for sample in samples)})
            sys.stdout.write(f"{name:7} {_ratio(role, rows[-1]['predicted'], rows[-1]['measured'])}\n")
    return rows


def _seconds(got: Forecast) -> dict[str, float]:
    return {phase: getattr(got, phase) for phase in PHASES}


def _medians(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {phase: statistics.median(float(r[phase]["seconds"]) for r in reports) for phase in PHASES}


def _ratios(predicted: dict[str, float], measured: dict[str, float]) -> str:
    pairs = {p: (predicted[p], measured[p]) for p in PHASES}
    pairs["both"] = sum(predicted.values()), sum(measured.values())
    return "  ".join(_ratio(p, a, b) for p, (a, b) in pairs.items())


def _ratio(what: str, predicted: float, measured: float) -> str:
    return f"{what} {predicted:6.3f} / {measured:6.3f} = {predicted / measured:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="loopback,lan,wan")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--machine", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    known = args.machine and not args.measure
    machine = machines.read(args.machine) if known else measure(lambda *_: None)
    if args.machine and args.measure:
        machines.write(args.machine, machine)
    if args.operations:
        found = operations(args.shapes.split(","), machine, args.repeat)
        if args.out:
            args.out.write_text(json.dumps({"machine": machine.model_dump(), "operations": found}, indent=1))
        return
    networks = [network(name) for name in args.networks.split(",")]
    models = {name: model_of(name) for name in args.shapes.split(",")}
    took: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        clients: dict[str, dict[str, Client]] = {}
        servers: dict[str, dict[str, psutil.Process]] = {}
        spent: dict[tuple[str, str], dict[str, float]] = {}  # by network and shape: processor seconds, by role
        loads: dict[str, float] = {}
        for net in networks:  # idle servers wait without taking the processor
            cluster = stack.enter_context(embedded(network=net))
            config = cluster.client_config()
            servers[net.name] = {p.role: psutil.Process(p.pid) for p in cluster.status()}
            clients[net.name] = {way: stack.enter_context(Client(config, in_turns=way == "turns")) for way in WAYS}
            for description, weights, _ in models.values():
                clients[net.name]["turns"].share_model(description, weights)
        for i in range(args.repeat + 1):
            for net in networks:
                for name, (description, _, batch) in models.items():
                    ask = partial(inputs_of, description, batch)
                    for way in WAYS:
                        before = {role: busy(process) for role, process in servers[net.name].items()}
                        report = clients[net.name][way].infer(name, ask, 1, batch.shape[1]).report
                        if i:  # the first warms up
                            took.setdefault((net.name, name, way), []).append(report)
                        if i and way == "turns":
                            sums = spent.setdefault((net.name, name), dict.fromkeys(before, 0.0))
                            for role, process in servers[net.name].items():
                                sums[role] += (busy(process) - before[role]) / args.repeat
                loads[net.name] = os.getloadavg()[0]
    rows = []
    for net in networks:
        for name, (description, _, batch) in models.items():
            layers = [whole(parts) for parts in demands(compile_stage(description, Plan(1, batch.shape[1])), machine)]
            each = forecast(layers, machine, net)
            reports, whole_jobs = (took[net.name, name, way] for way in WAYS)
            medians, predicted = _medians(reports), _seconds(total(each))
            ends = overlapping(layers, machine, net), statistics.median(r["seconds"] for r in whole_jobs)
            sums = spent[net.name, name]
            work = {"dealer": sums["dealer"], "party": statistics.mean(sums[role] for role in PARTIES)}
            means = servers_work(layers, machine)
            rows.append(
                {"network": net.name, "model": name, "load": loads[net.name],
                 "measured": medians | {"in all": ends[1], "processors": work},
                 "predicted": predicted | {"in all": ends[0], "processors": means}}
            )  # fmt: skip
            said = f"{_ratios(predicted, medians)}  in all {ends[0]:6.3f} / {ends[1]:6.3f} = {ends[0] / ends[1]:.2f}"
            sys.stdout.write(f"{net.name:9} {name:7} predicted / measured: {said}\n")
            said = "  ".join(_ratio(role, means[role], work[role]) for role in work)
            sys.stdout.write(f"    load {loads[net.name]:.1f}, processor time: {said}\n")
            for i, got in enumerate(each) if args.layers else ():
                parts = [report["layers"][i] for report in reports]
                sys.stdout.write(f"    {parts[0]['name']:12} {_ratios(_seconds(got), _medians(parts))}\n")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine.model_dump(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

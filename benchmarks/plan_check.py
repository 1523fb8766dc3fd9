"""Predicted and measured seconds of shapes on networks, interleaved; ratios of the two.

    python benchmarks/plan_check.py [--networks loopback,lan,wan] [--shapes small,minilm] [--repeat 3] [--layers]
        [--machine FILE] [--out FILE.json]

Shapes: two layers of 256 with 64 tokens, and all-MiniLM-L6-v2's with 128, random weights with that model's ranges. The
machine is measured first unless a profile is given; keep it quiet for all of it. Every job of a network runs before
the next round begins, so that whatever else happens falls on all of them. Medians. With --layers a line for each layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.program import Program
from ditto.files import read_json
from ditto.models import Description, Plan, compile_stage, encode_inputs, random_batch
from ditto.models.architecture import Tensors
from ditto.models.description import Dimensions, layer_ranges
from ditto.models.random import random_weights, scaled_model
from ditto.models.tokenizer import Batch
from ditto.net.emulation import network
from ditto.planning import machine as machines
from ditto.planning.forecast import Forecast, demands, forecast, overlapping, total, whole
from ditto.planning.measure import measure

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


def _seconds(got: Forecast) -> dict[str, float]:
    return {phase: getattr(got, phase) for phase in PHASES}


def _medians(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {phase: statistics.median(float(r[phase]["seconds"]) for r in reports) for phase in PHASES}


def _ratios(predicted: dict[str, float], measured: dict[str, float]) -> str:
    pairs = {p: (predicted[p], measured[p]) for p in PHASES}
    pairs["both"] = sum(predicted.values()), sum(measured.values())
    return "  ".join(f"{p} {a:6.3f} / {b:6.3f} = {a / b:.2f}" for p, (a, b) in pairs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="loopback,lan,wan")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--machine", type=Path)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine = machines.read(args.machine) if args.machine else measure(lambda *_: None)
    networks = [network(name) for name in args.networks.split(",")]
    models = {name: model_of(name) for name in args.shapes.split(",")}
    took: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        clients: dict[str, dict[str, Client]] = {}
        for net in networks:  # idle servers wait without taking the processor
            cluster = stack.enter_context(embedded(network=net))
            config = cluster.client_config()
            clients[net.name] = {way: stack.enter_context(Client(config, in_turns=way == "turns")) for way in WAYS}
            for description, weights, _ in models.values():
                clients[net.name]["turns"].share_model(description, weights)
        for i in range(args.repeat + 1):
            for net in networks:
                for name, (description, _, batch) in models.items():
                    ask = partial(inputs_of, description, batch)
                    for way in WAYS:
                        report = clients[net.name][way].infer(name, ask, 1, batch.shape[1]).report
                        if i:  # the first warms up
                            took.setdefault((net.name, name, way), []).append(report)
    rows = []
    for net in networks:
        for name, (description, _, batch) in models.items():
            layers = [whole(parts) for parts in demands(compile_stage(description, Plan(1, batch.shape[1])), machine)]
            each = forecast(layers, machine, net)
            reports, whole_jobs = (took[net.name, name, way] for way in WAYS)
            medians, predicted = _medians(reports), _seconds(total(each))
            ends = overlapping(layers, machine, net), statistics.median(r["seconds"] for r in whole_jobs)
            rows.append(
                {"network": net.name, "model": name, "measured": medians | {"in all": ends[1]},
                 "predicted": predicted | {"in all": ends[0]}}
            )  # fmt: skip
            said = f"{_ratios(predicted, medians)}  in all {ends[0]:6.3f} / {ends[1]:6.3f} = {ends[0] / ends[1]:.2f}"
            sys.stdout.write(f"{net.name:9} {name:7} predicted / measured: {said}\n")
            for i, got in enumerate(each) if args.layers else ():
                parts = [report["layers"][i] for report in reports]
                sys.stdout.write(f"    {parts[0]['name']:12} {_ratios(_seconds(got), _medians(parts))}\n")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine.model_dump(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

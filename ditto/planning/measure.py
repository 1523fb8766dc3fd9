"""Measure a machine for predictions: operations in this process alone, then three small jobs on five processes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import psutil

from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.plan import Plan
from ditto.engine.program import Program
from ditto.models import compile_stage, encode_inputs, random_batch
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Dimensions, LayerRanges, Neurons, NormRange, ScoreRange
from ditto.models.random import SHAPES, random_weights, scaled_description, scaled_model
from ditto.models.tokenizer import Batch
from ditto.net.emulation import network
from ditto.planning.forecast import Demand, Forecast, demands, forecast, whole
from ditto.planning.machine import Machine, rates_of, with_processes
from ditto.planning.stopwatch import Sample, stopwatch
from ditto.ring.malloc import tune_memory

PROGRAMS = 3  # times that each is timed; the quickest counts
JOBS = 5  # of each model; medians count
START = {"round": 3e-4, "sent": 1e-9, "phase": 2e-3, "lead": 1e-2}
FACTORS = (0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 4.0)
SWEEPS = 60
FLOOR = 0.005  # seconds that are added to both sides of a ratio: shorter phases of a layer say little
VOCABULARY = 16_384  # large enough for openings of megabytes, by which bytes sent are told from rounds

Say = Callable[[str, int, int], None]  # what is done now, and how many of how many steps were before


class Shape(NamedTuple):
    """One layer of a model to measure with, and the tokens that it takes."""

    architecture: str
    hidden: int
    tokens: int


READS, WRITES = (SHAPES[name][0] for name in ("bert-tiny", "gpt2-tiny"))  # classes
TIMED = (Shape(READS, 256, 32), Shape(READS, 256, 128), Shape(READS, 768, 64))
ASKED = (Shape(READS, 256, 16), Shape(READS, 256, 128), Shape(READS, 768, 128))
GENERATING = (Shape(WRITES, 256, 32), Shape(WRITES, 256, 96))

# Two layers as trained models have them, so that every kind of operation is timed that their programs use: neurons in
# classes, scores with a maximum and without, roots over many octaves. A kind that is not timed goes by another's rate.
_NEURONS = tuple(
    Neurons(count=count, bound=bound) for count, bound in ((704, 6.0), (192, 7.0), (64, 8.0), (32, 10.0), (32, 32.0))
)
_NORMS = {
    "norm1": NormRange(input=16.0, output=40.0, variance=(0.06, 1.0)),
    "norm2": NormRange(input=300.0, output=16.0, variance=(0.2, 260.0)),
}
RANGES = tuple(
    LayerRanges(
        qkv=12.0, scores=scores, context=4.5, attention=6.5, activation=32.0, neurons=_NEURONS, ffn=290.0, **_NORMS
    )
    for scores in (
        ScoreRange(size=48.0, above=54.0, below=70.0, spread=78.0),
        ScoreRange(size=20.0, above=10.5, below=30.0, spread=31.0),
    )
)


def _checkpoint(shape: Shape) -> Checkpoint:
    generates = shape.architecture == WRITES
    d = Dimensions(
        hidden=shape.hidden, layers=len(RANGES), heads=shape.hidden // 64, inner=4 * shape.hidden,
        vocabulary=VOCABULARY, positions=512, token_types=0 if generates else 2, embedding=shape.hidden, epsilon=1e-5,
        activation="tanh gelu" if generates else "gelu",
    )  # fmt: skip
    return random_weights(shape.architecture, d)


STEPS = len(TIMED) + len(GENERATING) + 1 + len(ASKED)  # models by themselves, four servers, models on these


def measure(say: Say) -> Machine:
    """About a minute, on all cores: what else runs is measured, too."""
    tune_memory()
    machine = Machine(cores=os.cpu_count() or 1, rates=rates_of(_samples(say)))
    reports = _jobs(say)
    return with_processes(machine, fit_processes(machine, reports))


def timed(shape: Shape) -> Description:
    """Of two layers of random weights with RANGES."""
    return scaled_description(_checkpoint(shape), "timing", shape.tokens, real=RANGES)[0]


def _samples(say: Say) -> list[Sample]:
    samples: list[Sample] = []
    for done, shape in enumerate((*TIMED, *GENERATING)):
        say(f"timing operations: {shape.architecture}, {shape.hidden} wide, {shape.tokens} tokens", done, STEPS)
        program = compile_stage(timed(shape), Plan(1, shape.tokens))
        samples += quickest([stopwatch(program) for _ in range(PROGRAMS)])
    return samples


def quickest(runs: Sequence[list[Sample]]) -> list[Sample]:
    """Of several runs of one program, by kind and role."""
    return [
        same[0]._replace(seconds={role: min(s.seconds[role] for s in same) for role in same[0].seconds})
        for same in zip(*runs, strict=True)
    ]


def _words(tokens: int) -> Batch:
    batch = random_batch(1, tokens)
    return Batch(batch.ids % VOCABULARY, batch.types, batch.mask)


def _inputs(description: Description, batch: Batch, program: Program) -> Tensors:
    return encode_inputs(description, program, batch)


class Asked(NamedTuple):
    """A job that was run: its layers' demands, what they took, and seconds that the dealer's processor was busy."""

    layers: list[Demand]
    took: list[Forecast]
    dealer: float


def _jobs(say: Say) -> Callable[[Machine], list[Asked]]:
    """On loopback, medians of JOBS of each model."""
    runs: list[tuple[Description, Shape, list[Forecast], float]] = []
    say("starting four servers", STEPS - len(ASKED) - 1, STEPS)
    with embedded(network=network("loopback")) as cluster, Client(cluster.client_config(), in_turns=True) as client:
        dealer = psutil.Process(next(process.pid for process in cluster.status() if process.role == "dealer"))
        for number, shape in enumerate(ASKED):
            say(f"timing jobs: {shape.hidden} wide, {shape.tokens} tokens", STEPS - len(ASKED) + number, STEPS)
            description, weights, _ = scaled_model(_checkpoint(shape), f"timing-{number}", shape.tokens, real=RANGES)
            client.share_model(description, weights)
            inputs = partial(_inputs, description, _words(shape.tokens))
            client.infer(description.name, inputs, 1, shape.tokens)  # warms up
            before = busy(dealer)
            reports = [client.infer(description.name, inputs, 1, shape.tokens).report for _ in range(JOBS)]
            runs.append((description, shape, _medians(reports), (busy(dealer) - before) / JOBS))

    def asked(machine: Machine) -> list[Asked]:
        return [
            Asked([whole(p) for p in demands(compile_stage(d, Plan(1, shape.tokens)), machine)], took, dealer)
            for d, shape, took, dealer in runs
        ]

    return asked


def busy(process: psutil.Process) -> float:
    """Seconds of processor time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _medians(reports: Sequence[dict[str, Any]]) -> list[Forecast]:
    """By layer and phase."""
    rows = zip(*(report["layers"] for report in reports), strict=True)
    return [Forecast(*(median(float(r[p]["seconds"]) for r in row) for p in ("online", "offline"))) for row in rows]


def fit_processes(machine: Machine, asked: Callable[[Machine], list[Asked]]) -> Mapping[str, float]:
    """What the processes add.

    1. A byte that is dealt: the dealer's processor time beyond its operations, over the bytes that it sent. Receiving
       one counts the same.
    2. The others so that forecasts come nearest to what the layers took: squared logarithms of their ratios, since
       relative errors would rather have forecasts too low; by a search over one constant at a time.
    """
    jobs, loopback = asked(machine), network("loopback")
    # 1
    sums = [sum(job.layers, Demand()) for job in jobs]
    beyond = sum(job.dealer - done.deal for job, done in zip(jobs, sums, strict=True))
    dealt = {"dealt": max(0.0, beyond / sum(done.dealt for done in sums))}
    # 2

    def error(constants: Mapping[str, float]) -> float:
        tried = with_processes(machine, {**dealt, **constants})
        left = 0.0
        for job in jobs:
            for took, got in zip(job.took, forecast(job.layers, tried, loopback), strict=True):
                for was, predicted in ((took.online, got.online), (took.offline, got.offline)):
                    left += math.log((predicted + FLOOR) / (was + FLOOR)) ** 2
        return left

    best = dict(START)
    least = error(best)
    for _ in range(SWEEPS):
        before = least
        for name in best:
            for factor in FACTORS:
                tried = best | {name: best[name] * factor}
                if (found := error(tried)) < least:
                    best, least = tried, found
        if least > before * (1 - 1e-4):
            break
    return {**dealt, **best}

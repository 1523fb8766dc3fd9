"""STS-B under MPC on real processes: Spearman and cosine against the same model in fp32.

    python benchmarks/stsb.py DATA_DIR [--pairs 100] [--preset ditto] [--checkpoint DIR] [--calibrate TEXTS]

DATA_DIR holds stsb/dev.csv (a, b, score). The model is the one that `ditto demo` uses, or any encoder of sentences,
calibrated on the demo's sentences or on a file of them.
"""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ditto.cli.demo import calibration_texts, installed_checkpoint
from ditto.cli.run import Run, run_batch, watching
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.models import import_model, load_checkpoint
from ditto.train.metrics import spearman

JOB = 24  # texts: a job's rounds take their time however many there are


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def measure(
    client: Client,
    data: Path,
    pairs: int,
    preset: str = "ditto",
    checkpoint: Path | None = None,
    calibrate: Path | None = None,
) -> dict[str, Any]:
    """Run the first `pairs` pairs on the client's cluster; return Spearman, cosines and costs."""
    with (data / "stsb" / "dev.csv").open(newline="") as file:
        rows = list(csv.reader(file))[:pairs]
    texts = [row[0] for row in rows] + [row[1] for row in rows]
    gold = np.array([float(row[2]) for row in rows])
    loaded = load_checkpoint(checkpoint or installed_checkpoint())
    sentences = calibrate.read_text(encoding="utf-8").splitlines() if calibrate else calibration_texts()
    description, weights = import_model(loaded, "sentences", sentences, preset=preset)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # neighbours share a bucket
    tokenizer, ordered = loaded.tokenizer(), [texts[i] for i in order]
    batches = [
        tokenizer.encode(ordered[at : at + JOB], description.dimensions.positions) for at in range(0, len(ordered), JOB)
    ]
    run = Run()
    began = time.perf_counter()
    client.share_model(description, weights)
    with watching(False) as watcher:
        for at, batch in enumerate(batches):
            watcher.job(f"job {at + 1} of {len(batches)}")
            run_batch(client, description, batch, watcher, run)
    seconds = time.perf_counter() - began
    for batch in batches:
        run.reference += loaded.reference(batch)
    mpc, fp32 = (np.array(v)[np.argsort(order)] for v in (run.results, run.reference))
    close = cosine(mpc, fp32)
    similar = {name: spearman(cosine(v[:pairs], v[pairs:]), gold) for name, v in (("mpc", mpc), ("fp32", fp32))}
    return {
        "preset": preset,
        "pairs": pairs,
        "spearman": similar,
        "cosine": {"mean": float(close.mean()), "min": float(close.min())},
        "online": run.report["online"],
        "offline": run.report["offline"],
        "wall_seconds": seconds,
    }


def main(
    data: Path,
    pairs: Annotated[int, typer.Option()] = 100,
    preset: Annotated[str, typer.Option()] = "ditto",
    checkpoint: Annotated[Path | None, typer.Option(help="Another model's directory.")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="Sentences for its calibration, one a line.")] = None,
) -> None:
    """Print what `measure` finds, as JSON."""
    with embedded() as cluster, Client(cluster.client_config()) as client:
        typer.echo(json.dumps(measure(client, data, pairs, preset, checkpoint, calibrate), indent=1))


if __name__ == "__main__":
    typer.run(main)

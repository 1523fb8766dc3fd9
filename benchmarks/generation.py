"""A prompt of 32 tokens, and later tokens up to context 128, of a GPT-2's shape on several networks: one command.

    python -m benchmarks.generation [--networks loopback,lan,wan] [--repeat 2] [--out results/]

Writes what `ditto bench model --json` prints of the median job, a file for each network and prompt, and the tables of
benchmarks/table.py. The prompt before the later tokens has 124: four tokens, of context 125 to 128, are a row's median.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.table import generation, shapes
from ditto.cli.bench import _generate
from ditto.cli.bench_presets import read_ranges
from ditto.cli.common import note
from ditto.cli.run import watching
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.models import random_batch, random_model
from ditto.net.emulation import network as profile

JOBS = ((32, 1), (124, 5))  # tokens of the prompt, tokens to generate


def main(
    model: str = "gpt2",
    networks: str = "loopback,lan,wan",
    repeat: int = 2,
    layers: int | None = None,
    ranges: Annotated[Path | None, typer.Option(help="A trained model's.")] = None,
    out: Path = Path("results"),
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    real = read_ranges(ranges) if ranges else ()
    description, weights, _ = random_model(model, layers, max(seq for seq, _ in JOBS), real=real)
    rows: list[dict[str, Any]] = []
    for emulated in map(profile, networks.split(",")):
        found: dict[int, list[dict[str, Any]]] = {seq: [] for seq, _ in JOBS}
        with embedded(network=emulated) as cluster, Client(cluster.client_config()) as client, watching(True) as quiet:
            client.share_model(description, weights)
            for i in range(repeat):
                for seq, tokens in JOBS:
                    job = _generate(client, description, random_batch(1, seq), tokens, emulated.name, quiet)
                    found[seq].append(job)
                    note(
                        f"{emulated.name}, {seq} + {tokens}, {i + 1}/{repeat}: {job['online']['seconds']:.2f} s online"
                    )
        for seq, jobs in found.items():
            jobs.sort(key=lambda job: float(job["online"]["seconds"]))
            rows.append(jobs[(len(jobs) - 1) // 2])
            (out / f"{model}-{seq}-{emulated.name}.json").write_text(json.dumps(rows[-1], indent=1) + "\n")
    first = [row for row in rows if row["seq"] == JOBS[0][0]]
    typer.echo("\n".join([*shapes(first), "", *generation(rows)]))


if __name__ == "__main__":
    typer.run(main)

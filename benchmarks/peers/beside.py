"""The peers and ditto on this machine in turns: results/beside.json and a table with ratios.

    bash benchmarks/peers/setup.sh
    python benchmarks/peers/beside.py --ranges benchmarks/ranges/all-mpnet-base-v2.json --out results/

Run by an interpreter that has ditto. ditto runs before, between and after the peers' rows (by default SPU with PUMA's
recipe and CrypTen's own functions), `--jobs` jobs each time: so whatever else happens on the machine falls on all of
them. A peer's first run warms up and does not count; all of ditto's do. Its seconds are those of a whole job, with the
dealer's part, embeddings and pooler, which the peers leave out; bytes are of all senders.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import run

ROOT = Path(__file__).resolve().parents[2]
PEERS = "spu:puma,crypten:exact"
Row = dict[str, Any]


def ditto(a: argparse.Namespace) -> Row:
    """Jobs of one cluster."""
    argv = [sys.executable, "-m", "ditto", "bench", "model", "--model", a.model, "--seq", str(a.seq), "--json"]
    argv += ["--repeat", str(a.jobs)]
    argv += ["--layers", str(a.layers)] if a.layers else []
    argv += ["--ranges", str(a.ranges.absolute())] if a.ranges else []
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    found = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=env, cwd=ROOT).stdout)
    jobs = [job["seconds"] for job in found["repeats"]]  # layers are prepared while others run
    return {
        "system": "ditto", "recipe": "ditto", "runs": jobs,
        "rounds": found["online"]["rounds"], "bytes_sent_all_parties": sum(found["online"]["bytes_sent"]),
        "bytes_dealer": sum(found["offline"]["bytes_to_party"]), "load": list(os.getloadavg()),
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Medians over all turns, and how many times ditto's seconds and bytes each needs."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        if "error" not in row:
            by_name.setdefault(f"{row['system']}, {row['recipe']}", []).append(row)
    own = by_name.get("ditto, ditto", [])
    lines = [
        "| system, recipe | seconds | times ditto's | GB of all senders | times ditto's | runs |",
        "|---" * 6 + "|",
    ]
    for name, found in by_name.items():
        runs = [seconds for row in found for seconds in row["runs"]]
        seconds, size = statistics.median(runs), _bytes(found[0])
        times = [""] * 2
        if own:
            mine = statistics.median(s for row in own for s in row["runs"])
            times = [f"{seconds / mine:.1f}", f"{size / _bytes(own[0]):.1f}"]
        spread = ", ".join(f"{s:.2f}" for s in runs)
        lines.append(f"| {name} | {seconds:.2f} | {times[0]} | {size / 1e9:.2f} | {times[1]} | {spread} |")
    lines += [f"\n{row['system']}, {row['recipe']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)


def _bytes(row: Row) -> float:
    return float(row["bytes_sent_all_parties"] + (row["bytes_dealer"] or 0))


def main(a: argparse.Namespace) -> int:
    a.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        (a.out / "beside.json").write_text(json.dumps(rows, indent=1) + "\n")
        sys.stderr.write(f"{row['system']}, {row['recipe']}: {row.get('error') or row['runs']}\n")

    for _ in range(a.rounds):
        for peer in a.peers.split(","):
            add(ditto(a))
            add(run.measure(a, *peer.split(":")))
    add(ditto(a))
    sys.stdout.write(table(rows) + "\n")
    return int(any("error" in row for row in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--model", choices=list(run.SHAPES), default="bert-base")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--layers", type=int, help="instead of the model's own number")
    parser.add_argument("--ranges", type=Path, help="a trained model's ranges for ditto")
    parser.add_argument("--jobs", type=int, default=3, help="of ditto, each time")
    parser.add_argument("--reps", type=int, default=1, help="of a peer, each time")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", default=PEERS, help="SYSTEM:RECIPE, separated by commas")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one row of a peer")
    parser.add_argument("--venvs", type=lambda text: Path(text).absolute(), default=run.HERE / ".venvs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(arguments()))

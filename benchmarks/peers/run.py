"""Run the peers on this machine, each in its own virtual environment, and write results/peers.json: a list of rows.

    bash benchmarks/peers/setup.sh
    python benchmarks/peers/run.py --out results/ --model bert-base --seq 128 --reps 3

A peer that fails or passes its time limit gives a row with "error", and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHAPES = {
    "bert-base": {"layers": 12, "hidden": 768, "heads": 12, "ffn": 3072},
    "bert-large": {"layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096},
}
RECIPES = {
    "spu": {"puma": ["--gelu", "puma"], "quad": ["--gelu", "quad"]},
    "crypten": {"exact": ["--recipe", "exact"], "mpcformer": ["--recipe", "mpcformer"]},
}


def launch(argv: list[str], limit: float, scratch: str) -> tuple[str, str]:
    """Standard output and an error, one of them empty; no process of the run is left when this returns."""
    with tempfile.TemporaryFile("w+", errors="replace", dir=scratch) as log:
        env = os.environ | {"TMPDIR": scratch}
        proc = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, env=env, start_new_session=True)
        try:
            out, _ = proc.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return "", f"no result within {limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()
        if proc.returncode == 0:
            return out, ""
        log.seek(0)
        text = log.read().strip()
        sys.stderr.write(text[-4000:] + "\n")
        last = text.splitlines()[-1] if text else "no message"
        return "", f"exit code {proc.returncode}: {last}"


def measure(a: argparse.Namespace, system: str, recipe: str) -> dict[str, Any]:
    shape = SHAPES[a.model] | ({"layers": a.layers} if a.layers else {})
    known = {"model": a.model, "seq": a.seq, **shape}
    python = a.venvs / system / "bin" / "python"
    argv = [str(python), str(HERE / f"{system}_bert.py"), "--reps", str(a.reps), *RECIPES[system][recipe]]
    for key, value in known.items():
        argv += [f"--{key}", str(value)]
    out, error = "", f"no virtual environment at {python}: run setup.sh"
    if python.exists():
        with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
            out, error = launch(argv, a.limit, scratch)
    if not error:
        try:
            row: dict[str, Any] = json.loads(out)
            return row
        except ValueError:
            error = "the output is not one JSON object"
    row = {"system": system, "recipe": recipe, "scope": "encoder", "network": "loopback", "error": error}
    return row | known | {"load": list(os.getloadavg())}


def main(a: argparse.Namespace) -> int:
    a.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for system in a.systems:
        for recipe in RECIPES[system]:
            if a.recipes and recipe not in a.recipes:
                continue
            sys.stderr.write(f"{system} {recipe} ...\n")
            rows.append(measure(a, system, recipe))
            (a.out / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
            row = rows[-1]
            told = row.get("error") or f"{row['seconds']:.2f} s, {row['bytes_sent_all_parties'] / 1e9:.2f} GB"
            sys.stderr.write(f"{system} {recipe}: {told}\n")
    return 1 if not rows or any("error" in row for row in rows) else 0


def arguments() -> argparse.Namespace:
    def names(allowed: list[str]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := set(chosen) - set(allowed):
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(allowed)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(description="run SPU and CrypTen on this machine")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--model", choices=list(SHAPES), default="bert-base")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--layers", type=int, help="instead of the model's own number")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--systems", type=names(list(RECIPES)), default=list(RECIPES))
    every = [recipe for recipes in RECIPES.values() for recipe in recipes]
    parser.add_argument("--recipes", type=names(every), help=f"some of {','.join(every)} (default: all)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one system and recipe, set-up included")
    parser.add_argument("--venvs", type=Path, default=HERE / ".venvs")
    args = parser.parse_args()
    args.venvs = args.venvs.absolute()
    return args


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(arguments()))

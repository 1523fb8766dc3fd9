"""What both peers share: one random encoder in fp32, its plaintext result, and the accounts of a run.

The model is the encoder alone (it begins with hidden states): post-LayerNorm blocks as in BERT, no mask, batch 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EPS = 1e-12
Layer = dict[str, np.ndarray]
Function = Callable[[np.ndarray], np.ndarray]


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--ffn", type=int, default=3072)
    parser.add_argument("--reps", type=int, default=2, help="timed runs after one warm-up run")
    parser.add_argument("--model", default="custom", help="a name for the row")
    parser.add_argument("--party", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(load_before=list(os.getloadavg()))
    return parser


def hidden_states(a: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((1, a.seq, a.hidden)).astype(np.float32)


def random_layer(a: argparse.Namespace, index: int) -> Layer:
    """Weights that keep scores and pre-activations near unit variance at any width."""
    rng = np.random.default_rng(1000 + index)

    def normal(*shape: int, std: float) -> np.ndarray:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    d, f = a.hidden, a.ffn
    layer = {f"w{n}": normal(d, d, std=1.1 * d**-0.5) for n in "qkvo"}
    layer |= {"wi": normal(d, f, std=1.1 * d**-0.5), "wf": normal(f, d, std=1.1 * f**-0.5)}
    layer |= {f"b{n}": normal(f if n == "i" else d, std=0.02) for n in "qkvoif"}
    for n in "12":
        layer |= {f"g{n}": 1 + normal(d, std=0.02), f"c{n}": normal(d, std=0.02)}
    return layer


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def quad(x: np.ndarray) -> np.ndarray:
    """MPCFormer's stand-in for GELU."""
    return 0.125 * x * x + 0.25 * x + 0.5


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def two_quad(x: np.ndarray) -> np.ndarray:
    """MPCFormer's stand-in for softmax."""
    q = (x + 5) ** 2
    return q / q.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, g: np.ndarray, c: np.ndarray) -> np.ndarray:
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + EPS) * g + c


def plaintext(a: argparse.Namespace, act: Function, smax: Function) -> np.ndarray:
    def heads(y: np.ndarray) -> np.ndarray:
        return y.reshape(1, a.seq, a.heads, -1).transpose(0, 2, 1, 3)

    x = hidden_states(a)
    for i in range(a.layers):
        p = random_layer(a, i)
        q, k, v = (heads(x @ p[f"w{n}"] + p[f"b{n}"]) for n in "qkv")
        w = smax(q @ k.swapaxes(-1, -2) / np.float32(a.hidden / a.heads) ** 0.5)
        y = (w @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = layer_norm(x + y @ p["wo"] + p["bo"], p["g1"], p["c1"])
        y = act(x @ p["wi"] + p["bi"])
        x = layer_norm(x + y @ p["wf"] + p["bf"], p["g2"], p["c2"])
    assert x.dtype == np.float32
    return x


def compare(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """The errors, or an exit: a run that computed garbage gets no time."""
    error = np.abs(got.astype(np.float64) - want)
    cosine = float((got * want).sum(dtype=np.float64) / np.linalg.norm(got) / np.linalg.norm(want))
    accounts = {"max_abs_error": float(error.max()), "mean_abs_error": float(error.mean()), "cosine": cosine}
    if not cosine > 0.99:
        raise SystemExit(f"the result is wrong, so there is nothing to time: {accounts}")
    return accounts


def row(a: argparse.Namespace, runs: Sequence[float], **fields: Any) -> dict[str, Any]:
    return {
        "model": a.model,
        "scope": "encoder",
        "layers": a.layers,
        "seq": a.seq,
        "hidden": a.hidden,
        "heads": a.heads,
        "ffn": a.ffn,
        "network": "loopback",
        "seconds": statistics.median(runs),
        "runs": list(runs),
        **fields,
        "cpus": os.cpu_count(),
        "load_before": a.load_before,
        "load": list(os.getloadavg()),
    }


def peak_rss() -> int:
    """VmHWM, since ru_maxrss is inherited from the parent over fork and exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_parties(count: int, directory: Path, env: dict[str, str]) -> None:
    """Run this script once per party, with --party, --dir and RANK set; end all of them if one fails."""
    procs: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for i in range(count):
            with (directory / f"log{i}").open("wb") as log:
                argv = [sys.executable, *sys.argv, "--party", str(i), "--dir", str(directory)]
                procs.append(subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | env | {"RANK": str(i)}))
        while any(p.poll() is None for p in procs) and not any(p.returncode for p in procs):
            time.sleep(0.05)
    finally:
        for p in procs:
            p.kill()
            p.wait()
    for i, p in enumerate(procs):
        if p.returncode:
            sys.stderr.write(f"-- party {i}\n{(directory / f'log{i}').read_text(errors='replace')[-3000:]}\n")
    if any(p.returncode for p in procs):
        raise SystemExit(f"a party failed: exit codes {[p.returncode for p in procs]}")


class JsonOut:
    """Keeps standard output for one JSON object: what libraries print there goes to standard error."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def write(self, document: dict[str, Any]) -> None:
        os.write(self._fd, (json.dumps(document) + "\n").encode())

"""CrypTen: an encoder between two processes, with a third as trusted dealer, over loopback.

    python crypten_bert.py --layers 12 --recipe exact --provider TTP

Recipe exact: CrypTen's softmax (with the maximum) and GELU from its tanh. Recipe mpcformer: MPCFormer's quadratics
for both, LayerNorm kept. Provider TFP has party 0 make the tuples: it sees them all, so it is not secure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import encoder
import numpy as np


def load_crypten(a: argparse.Namespace) -> Any:
    # CrypTen 0.4.1 imports a name that newer torch lacks; only its ONNX import, unused here, needs it.
    sys.modules.setdefault("torch.onnx._internal.registration", types.SimpleNamespace(registry=None))
    warnings.filterwarnings("ignore")
    import crypten
    import torch

    torch.set_num_threads(a.threads)
    crypten.cfg.communicator.verbose = True  # count bytes and rounds
    crypten.cfg.mpc.provider = a.provider
    return crypten


def gelu(x: Any) -> Any:
    inner = (x + x.square().mul(x).mul(0.044715)).mul((2 / np.pi) ** 0.5)
    return x.mul(inner.tanh() + 1).mul(0.5)


def quad(x: Any) -> Any:
    return x.square().mul(0.125) + x.mul(0.25) + 0.5


def softmax(x: Any) -> Any:
    return x.softmax(-1)


def two_quad(x: Any) -> Any:
    """(x + 5)^2 over its sum. The sum, near 26 n, is brought near 1 by a public factor first: CrypTen's reciprocal
    overflows on it as published. It is known to be positive, so no sign is computed."""
    from crypten.config import cfg

    scale = 1 / (26 * x.size(-1))
    q = (x + 5).square()
    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        inverse = q.sum(-1, keepdim=True).mul(scale).reciprocal()
    return (q * inverse).mul(scale)


def layer_norm(x: Any, g: Any, c: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d * (d.square().mean(-1, keepdim=True) + encoder.EPS).inv_sqrt() * g + c


RECIPES = {
    "exact": (gelu, softmax, encoder.gelu, encoder.softmax),
    "mpcformer": (quad, two_quad, encoder.quad, encoder.two_quad),
}


def forward(a: argparse.Namespace, x: Any, layers: list[dict[str, Any]]) -> Any:
    act, smax, _, _ = RECIPES[a.recipe]

    def linear(y: Any, n: str, p: dict[str, Any]) -> Any:
        return y.matmul(p[f"w{n}"]) + p[f"b{n}"]

    def heads(y: Any) -> Any:
        return y.view(1, a.seq, a.heads, a.hidden // a.heads).permute(0, 2, 1, 3)

    for p in layers:
        q, k, v = (heads(linear(x, n, p)) for n in "qkv")
        w = smax(q.matmul(k.transpose(-1, -2)).mul((a.hidden / a.heads) ** -0.5))
        y = w.matmul(v).permute(0, 2, 1, 3).reshape(1, a.seq, a.hidden)
        x = layer_norm(x + linear(y, "o", p), p["g1"], p["c1"])
        x = layer_norm(x + linear(act(linear(x, "i", p)), "f", p), p["g2"], p["c2"])
    return x


def party(a: argparse.Namespace) -> None:
    """One process: parties 0 (weights) and 1 (input), or 2, the dealer, which serves until they leave."""
    crypten = load_crypten(a)
    import crypten.communicator as comm
    import torch

    result: dict[str, Any] = {}
    if a.party == 2:
        from crypten.mpc.provider.ttp_provider import TTPServer

        TTPServer()
    else:
        crypten.init()

        def share(array: np.ndarray, owner: int) -> Any:
            return crypten.cryptensor(torch.from_numpy(array), src=owner)

        with crypten.no_grad():
            layers = [{k: share(v, 0) for k, v in encoder.random_layer(a, i).items()} for i in range(a.layers)]
            x = share(encoder.hidden_states(a), 1)
            runs = []
            for _ in range(1 + a.reps):
                comm.get().barrier()
                comm.get().reset_communication_stats()
                began = time.perf_counter()
                y = forward(a, x, layers)
                stats = comm.get().get_communication_stats()
                comm.get().barrier()
                runs.append(time.perf_counter() - began)
            result = {"runs": runs[1:], "bytes": stats["bytes"], "rounds": stats["rounds"]}
            # Not get_plain_text: CrypTen's decoder gives some negative values wrong by one (-2.0 becomes -3.0).
            ring = y._tensor.reveal().numpy()
            np.save(a.dir / f"output{a.party}.npy", (ring / y.encoder.scale).astype(np.float32))
        crypten.uninit()
    (a.dir / f"result{a.party}").write_text(json.dumps(result | {"rss": encoder.peak_rss()}))
    os._exit(0)  # gloo's threads may outlive the group


def main(a: argparse.Namespace) -> None:
    from importlib.metadata import version

    out = encoder.JsonOut()
    count = 3 if a.provider == "TTP" else 2
    with tempfile.TemporaryDirectory(prefix="crypten-bert-") as name:
        directory = Path(name)
        env = {
            "WORLD_SIZE": "2",
            "RENDEZVOUS": f"file://{directory}/rendezvous",
            "DISTRIBUTED_BACKEND": "gloo",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": str(a.threads),
        }
        encoder.run_parties(count, directory, env)
        results = [json.loads((directory / f"result{i}").read_text()) for i in range(count)]
        got = np.load(directory / "output0.npy")
    errors = encoder.compare(got, encoder.plaintext(a, *RECIPES[a.recipe][2:]))
    first, second = results[:2]
    out.write(
        {
            "system": "crypten",
            "version": version("crypten"),
            "recipe": a.recipe,
            "protocol": f"2 parties, {'trusted third party' if count == 3 else 'tuples by party 0 (not secure)'}",
            "provider": a.provider,
        }
        | encoder.row(
            a,
            [max(pair) for pair in zip(first["runs"], second["runs"], strict=True)],
            # CrypTen counts what a party sends and receives. Party 1 talks to party 0 alone and as much each way, so
            # its count is what both send; party 0's excess is its traffic with the dealer.
            bytes_sent_all_parties=int(second["bytes"]),
            bytes_dealer=int(first["bytes"] - second["bytes"]) if count == 3 else None,
            rounds=int(second["rounds"]),
            rounds_dealer=int(first["rounds"] - second["rounds"]) if count == 3 else None,
            peak_rss_bytes=max(r["rss"] for r in results),
            peak_rss_bytes_each=[r["rss"] for r in results],
            offline_included=True,
            threads=a.threads,
        )
        | errors
    )


if __name__ == "__main__":
    parser = encoder.options("CrypTen, two processes and a dealer over loopback")
    parser.add_argument("--recipe", choices=list(RECIPES), default="exact")
    parser.add_argument("--provider", choices=["TTP", "TFP"], default="TTP")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of each process")
    args = parser.parse_args()
    if args.party is None:
        main(args)
    else:
        party(args)

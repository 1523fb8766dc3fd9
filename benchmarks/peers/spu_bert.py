"""SecretFlow SPU: an encoder under ABY3 with three processes over loopback.

    python spu_bert.py --layers 12 --gelu puma

Ring of 64 bits with 18 for the fraction. PUMA's GELU and softmax and the settings of its authors' example; with
--gelu quad, the quadratic that Ditto and MPCFormer use, still with PUMA's softmax.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import encoder
import numpy as np

PARTIES = 3


def config(profile: bool = True) -> Any:
    from spu import libspu

    c = libspu.RuntimeConfig()
    c.protocol = libspu.ProtocolKind.ABY3
    c.field = libspu.FieldType.FM64
    c.fxp_fraction_bits = 18
    c.fxp_exp_iters = 5
    c.fxp_div_goldschmidt_iters = 5
    c.experimental_disable_mmul_split = True
    c.experimental_enable_intra_op_par = False  # has hung with three processes on two cores
    c.enable_pphlo_profile = profile  # prints the link's byte counts after each run
    return c


def puma_gelu(x: Any) -> Any:
    """0 below -4, two polynomials up to 3, x above."""
    import jax.numpy as jnp

    below, left, above = x < -4.0, x < -1.95, x > 3.0
    x2 = jnp.square(x)
    x3 = x * x2
    cubic = -0.011034134030615728 * x3 - 0.11807612951181953 * x2 - 0.42226581151983866 * x - 0.5054031199708174
    sextic = 0.0018067462606141187 * jnp.square(x3) - 0.037688200365904236 * jnp.square(x2)
    sextic = sextic + 0.3603292692789629 * x2 + 0.5 * x + 0.008526321541038084
    middle = left ^ above ^ True
    return above * x + (below ^ left) * cubic + middle * sextic


def puma_softmax(x: Any) -> Any:
    import jax.numpy as jnp

    x = x - jnp.max(x, -1, keepdims=True)
    e = jnp.exp(x) * (x > -14)
    return e / jnp.sum(e, -1, keepdims=True)


def layer_norm(x: Any, g: Any, c: Any) -> Any:
    """As Flax writes it, with the variance from the mean of squares."""
    import jax
    import jax.numpy as jnp

    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean))
    return (x - mean) * (jax.lax.rsqrt(variance + encoder.EPS) * g) + c


def forward(a: argparse.Namespace, x: Any, layers: list[dict[str, Any]]) -> Any:
    import jax.numpy as jnp

    act = puma_gelu if a.gelu == "puma" else encoder.quad
    for p in layers:
        q, k, v = ((x @ p[f"w{n}"] + p[f"b{n}"]).reshape(1, a.seq, a.heads, -1) for n in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / (a.hidden / a.heads) ** 0.5, k)
        y = jnp.einsum("bhqk,bkhd->bqhd", puma_softmax(scores), v).reshape(x.shape)
        x = layer_norm(x + y @ p["wo"] + p["bo"], p["g1"], p["c1"])
        y = act(x @ p["wi"] + p["bi"])
        x = layer_norm(x + y @ p["wf"] + p["bf"], p["g2"], p["c2"])
    return x


def party(a: argparse.Namespace) -> None:
    """One node: load the shares, run the program, leave times and the shares of the result."""
    from spu import api, libspu

    program = libspu.Executable()
    program.ParseFromString((a.dir / "program").read_bytes())
    desc = libspu.link.Desc()
    desc.recv_timeout_ms = 600_000
    desc.http_max_payload_size = 32 << 20
    for i, port in enumerate((a.dir / "ports").read_text().split()):
        desc.add_party(f"party{i}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(desc, a.party)
    runtime = api.Runtime(link, config())
    with (a.dir / f"shares{a.party}").open("rb") as file:
        for name in program.input_names:
            runtime.set_var(name, pickle.load(file))  # noqa: S301 - written by the parent process
    runs = []
    for _ in range(1 + a.reps):
        link.barrier()
        began = time.perf_counter()
        runtime.run(program)
        link.barrier()
        runs.append(time.perf_counter() - began)
    result = {"runs": runs[1:], "rss": encoder.peak_rss(), "share": runtime.get_var(program.output_names[0])}
    (a.dir / f"result{a.party}").write_bytes(pickle.dumps(result))
    time.sleep(1)  # the last barrier's messages may still be on their way to the others
    sys.stdout.flush()
    os._exit(0)  # tearing the link down can block on a party that has gone


def sent(log: str) -> tuple[int, int]:
    """Bytes and messages that one party sent in its last run, from SPU's profile."""
    found = re.findall(r"total send bytes (\d+), recv bytes \d+, send actions (\d+)", log)
    if not found:
        raise SystemExit("SPU's log has no link statistics")
    return int(found[-1][0]), int(found[-1][1])


def prepare(a: argparse.Namespace, io: Any, directory: Path) -> None:
    """Compile the encoder and write the program and every party's shares, one tensor at a time."""
    import jax
    from spu import libspu
    from spu.utils import frontend

    inputs = (encoder.hidden_states(a), [encoder.random_layer(a, i) for i in range(a.layers)])
    tensors, _ = jax.tree_util.tree_flatten((inputs, {}))
    copts = libspu.CompilerOptions()
    copts.enable_optimize_denominator_with_broadcast = True
    program, _ = frontend.compile(
        frontend.Kind.JAX,
        lambda x, layers: forward(a, x, layers),
        inputs,
        {},
        [f"in{i}" for i in range(len(tensors))],
        [libspu.Visibility.VIS_SECRET] * len(tensors),
        lambda outputs: [f"out{i}" for i in range(len(outputs))],
        copts=copts,
    )
    (directory / "program").write_bytes(program.SerializeToString())
    (directory / "ports").write_text(" ".join(str(encoder.free_port()) for _ in range(PARTIES)))
    files = [(directory / f"shares{i}").open("wb") for i in range(PARTIES)]
    for tensor in tensors:
        shares = io.make_shares(np.asarray(tensor), libspu.Visibility.VIS_SECRET)
        for file, share in zip(files, shares, strict=True):
            pickle.dump(share, file, protocol=4)
    for file in files:
        file.close()


def main(a: argparse.Namespace) -> None:
    out = encoder.JsonOut()
    import spu
    from spu import api

    io = api.Io(PARTIES, config(profile=False))
    with tempfile.TemporaryDirectory(prefix="spu-bert-") as name:
        directory = Path(name)
        prepare(a, io, directory)
        encoder.run_parties(PARTIES, directory, {})
        results = [pickle.loads((directory / f"result{i}").read_bytes()) for i in range(PARTIES)]  # noqa: S301
        traffic = [sent((directory / f"log{i}").read_text(errors="replace")) for i in range(PARTIES)]
    want = encoder.plaintext(a, encoder.gelu if a.gelu == "puma" else encoder.quad, encoder.softmax)
    errors = encoder.compare(io.reconstruct([r["share"] for r in results]), want)
    runs = [max(times) for times in zip(*(r["runs"] for r in results), strict=True)]
    out.write(
        {"system": "spu", "version": spu.__version__, "recipe": a.gelu, "protocol": "ABY3, FM64, f = 18, 3 parties"}
        | encoder.row(
            a,
            runs,
            bytes_sent_all_parties=sum(n for n, _ in traffic),
            bytes_dealer=None,
            rounds=None,
            messages_per_party=statistics.median_low(m for _, m in traffic),
            peak_rss_bytes=max(r["rss"] for r in results),
            peak_rss_bytes_each=[r["rss"] for r in results],
            offline_included=True,
            threads=os.cpu_count(),
        )
        | errors
    )


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    parser = encoder.options("SecretFlow SPU, ABY3, three processes over loopback")
    parser.add_argument("--gelu", choices=["puma", "quad"], default="puma")
    args = parser.parse_args()
    if args.party is None:
        main(args)
    else:
        party(args)

"""What each exact kernel of products takes here, by instruction set, in Markdown.

    python -m benchmarks.kernels [--threads N] [--repeats N]

Each set is a fresh process whose libraries (oneDNN, MKL, torch's own loops) are told to use no later one. A processor
that stands in for an older one keeps its clock, caches and memory: that is no measurement of an older machine.
`chosen` is what `kernel_of` takes in that process. Times are medians, of the processor's time for one thread, else of
the clock's; "-" is a kernel that is not exact there, or that torch does not have there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

ROWS, INNER, COLUMNS = 128, 768, 3072  # a layer's largest product, of bert-base at 128 tokens
SETS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "AMX": {},
}


def measured(threads: int, repeats: int) -> dict[str, dict[str, str]]:
    """In this process: by bits and kernel, in words."""
    import torch

    from ditto.ring import cast
    from ditto.ring.kernels import CARRIERS, KERNELS, RingMatrix, exact_here, kernel_of

    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-(2**62), 2**62, shape, generator=generator) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    found: dict[str, dict[str, str]] = {}
    for bits in CARRIERS:
        left, row = cast(x, bits), {}
        for kernel in KERNELS:
            if not exact_here(kernel, bits):
                row[kernel] = "-"
                continue
            matrix, seconds = RingMatrix(w, bits, kernel), []
            for _ in range(repeats):
                began = clock()
                matrix.product(left)
                seconds.append(clock() - began)
            row[kernel] = f"{1e3 * statistics.median(seconds):.1f} ms"
        found[str(bits)] = row | {"chosen": kernel_of(bits)}
    return found


def main(
    threads: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 9,
    here: Annotated[bool, typer.Option(help="In this process, as it stands; JSON.")] = False,
) -> None:
    if here:
        typer.echo(json.dumps(measured(threads, repeats)))
        return
    words = [sys.executable, "-m", "benchmarks.kernels", "--here", "--threads", str(threads), "--repeats", str(repeats)]
    typer.echo(f"{ROWS} x {INNER} x {COLUMNS}, {threads} thread(s); load {os.getloadavg()[0]:.1f} at the start\n")
    lines: list[str] = []
    for name, variables in SETS.items():
        done = subprocess.run(words, env=os.environ | variables, stdout=subprocess.PIPE, check=True, text=True)
        for bits, row in json.loads(done.stdout).items():
            if not lines:
                lines += [f"| set | ring | {' | '.join(row)} |", "|---|---|" + "---|" * len(row)]
            lines.append(f"| {name} | {bits} | {' | '.join(row.values())} |")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)

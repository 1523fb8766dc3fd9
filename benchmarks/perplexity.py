"""Perplexity of a GPT-2 in floats, in the integer interpreter and under MPC, preset by preset.

    python benchmarks/perplexity.py CHECKPOINT TEXT --calibrate TEXT [--preset ditto] [--windows 0] [--mpc 20]

CHECKPOINT is a directory as `ditto finetune` writes it; texts may end in .gz. Windows of the model's context, no
overlap; `--windows 0` takes the whole text. `--narrow` also scores with later tokens in narrower types (a prompt of a
quarter of a window, the rest token by token), on as many windows as `--mpc` says. Prints JSON. Parts of a text
(`--first`, `--windows`) join as the mean of their logarithms, weighted by windows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ditto.cli.common import note
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.plain import plain_weights, run_plain
from ditto.evaluation.language import logits_of
from ditto.evaluation.modes import by_interpreter
from ditto.evaluation.modes import on_shares as shares
from ditto.models import (
    Checkpoint,
    Description,
    Plan,
    compile_stage,
    describe,
    encode_weights,
    generator_of,
    load_checkpoint,
)
from ditto.models.gpt2.floats import forward, logits
from ditto.models.tokenizer import Prompts
from ditto.ring.malloc import tune_memory
from ditto.train.perplexity import perplexity, windows
from ditto.train.text import BytePairs, read_text

GPT2 = generator_of("GPT2LMHeadModel")
BATCH = 4
Tensor = torch.Tensor


def in_floats(checkpoint: Checkpoint, ids: Tensor, bits: tuple[int, int] | None = None) -> Tensor:
    """Logits [B, N, V]; with (activation, weight) fraction bits: every linear layer on rounded numbers (PTQ)."""
    if bits is None:
        return logits(checkpoint.tensors, forward(checkpoint.tensors, checkpoint.dimensions, ids))
    activation, weight = (2.0**b for b in bits)
    tensors = {name: (w * weight).round() / weight for name, w in checkpoint.tensors.items()}

    def rounded(x: Tensor) -> Tensor:
        return (x * activation).round() / activation

    return logits(tensors, rounded(forward(tensors, checkpoint.dimensions, ids, rounded=rounded)))


class Interpreter:
    """Logits by the plain interpreter of a preset, of a prompt and then token by token."""

    def __init__(self, description: Description, weights: dict[str, Tensor], context: int) -> None:
        self._description = description
        self._weights = plain_weights(compile_stage(description, Plan(1, context, every=True)), weights)

    def by_token(self, ids: Tensor, narrow: bool) -> Tensor:
        (batch, n), first = ids.shape, ids.shape[1] // 4
        plan = Plan(batch, first, n - first + 1, narrow_from=1 if narrow else 0, every=True)
        carried: dict[str, Tensor] = {}
        program = compile_stage(self._description, plan)
        inputs = GPT2.encode(self._description, program, Prompts(ids[:, :first], [first] * batch))
        out = run_plain(program, inputs, self._weights, carried)
        parts = [GPT2.logits(program, out).float().view(batch, first, -1)]
        for at in range(first, n):
            program = compile_stage(self._description, plan, at - first + 1)
            inputs = GPT2.encode_next(self._description, program, ids[:, at].tolist(), [at] * batch)
            parts.append(GPT2.logits(program, run_plain(program, inputs, self._weights, carried)).float()[:, None])
        return torch.cat(parts, 1)


def main(
    checkpoint: Path,
    text: Path,
    calibrate: Annotated[Path, typer.Option(help="A text like those of later use.")],
    preset: Annotated[str, typer.Option()] = "ditto",
    count: Annotated[int, typer.Option("--windows", help="How many of the text's windows; 0: all.")] = 0,
    first: Annotated[int, typer.Option(help="The window to begin with: parts of a text can run side by side.")] = 0,
    mpc: Annotated[int, typer.Option(help="Windows under MPC, on real processes.")] = 20,
    narrow: Annotated[bool, typer.Option(help="Later tokens in narrower types, too.")] = False,
    floats: Annotated[bool, typer.Option(help="fp32 and PTQ, too: the same for every preset.")] = True,
) -> None:
    """Print the perplexities as JSON."""
    tune_memory()
    loaded = load_checkpoint(checkpoint)
    context = loaded.dimensions.positions
    pairs = BytePairs(checkpoint)
    ids = pairs.encode(read_text(text)).long()[first * context :]
    if count:
        ids = ids[: count * context + 1]
    few = ids[: mpc * context + 1]
    seen = windows(pairs.encode(read_text(calibrate)).long()[: 32 * context + 1], context)[0]
    prompts = [Prompts(part, [context] * len(part)) for part in seen.split(BATCH)]
    description, loaded = describe(loaded, "scored", prompts, preset, "secret")
    weights = encode_weights(description, loaded.tensors)
    interpreter, whole = Interpreter(description, weights, context), logits_of(by_interpreter(description, weights))
    result: dict[str, Any] = {"preset": preset, "context": context, "first": first}
    result["windows"] = (len(ids) - 1) // context

    def score(name: str, logits_fn: Any, on: Tensor = ids, batch: int = BATCH) -> None:
        began = time.perf_counter()
        result[name] = perplexity(logits_fn, on, context, batch)
        note(f"{name}: {result[name]:.4f} ({time.perf_counter() - began:.0f} s)")

    if floats:
        score("fp32", lambda x: in_floats(loaded, x))
        score("ptq", lambda x: in_floats(loaded, x, (8, 12)))
    score("interpreter", whole)
    if mpc:
        result["mpc_windows"] = mpc
        score("fp32_few", lambda x: in_floats(loaded, x), few)
        score("interpreter_few", whole, few)
        if narrow:
            score("by_token_few", lambda x: interpreter.by_token(x, False), few, mpc)
            score("narrow_few", lambda x: interpreter.by_token(x, True), few, mpc)
        with embedded() as cluster, Client(cluster.client_config()) as client:
            client.share_model(description, weights)
            on_shares = logits_of(shares(client, description, guard=False))
            score("mpc_few", on_shares, few)
    typer.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    typer.run(main)

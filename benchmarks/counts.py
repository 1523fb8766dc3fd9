"""Rounds and bytes of every preset as their programs state them, in Markdown; nothing runs.

    python -m benchmarks.counts --ranges benchmarks/ranges/all-mpnet-base-v2.json [--models bert-base,bert-large,gpt2]

128 tokens. A GPT-2's columns are its prompt's; the last three those of a later token at context 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ditto.engine.parts import cut
from ditto.engine.plan import Plan
from ditto.errors import DittoError
from ditto.files import read_json
from ditto.models import Description, compile_stage
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import LayerRanges, layer_ranges
from ditto.models.random import is_causal, random_checkpoint, scaled_description
from ditto.ops import Cost
from ditto.presets import PRESETS

LATER = 16  # tokens after the prompt, where context ends


def cost_of(description: Description, plan: Plan, stage: int = 0) -> Cost:
    return cut(compile_stage(description, plan, stage), plan.hold).cost()


def table(shape: str, presets: Sequence[str], seq: int, real: Sequence[LayerRanges], layers: int | None) -> list[str]:
    causal, checkpoint = is_causal(shape), random_checkpoint(shape, layers)
    heads = ["preset", "rounds", "MB sent by each party", "MB from the dealer"]
    heads += ["rounds of a later token", "MB sent", "MB dealt"] * causal
    lines = [f"## {shape}, {seq} tokens", "", _line(heads), "|---" * len(heads) + "|"]
    for preset in presets:
        try:
            lines.append(_line([f"`{preset}`", *_row(checkpoint, shape, preset, seq, real)]))
        except DittoError as error:
            lines.append(_line([f"`{preset}`", f"refused: {error}", *[""] * (len(heads) - 2)]))
    return [*lines, ""]


def _row(checkpoint: Checkpoint, shape: str, preset: str, seq: int, real: Sequence[LayerRanges]) -> list[str]:
    description, _ = scaled_description(checkpoint, shape, seq, preset, real=real)
    cells = _cells(cost_of(description, Plan(1, seq)))
    if is_causal(shape):
        plan = Plan(1, seq - LATER, LATER + 1)
        cells += _cells(cost_of(description, plan, plan.stages - 1), 2)
    return cells


def _cells(cost: Cost, digits: int = 1) -> list[str]:
    return [str(cost.rounds), f"{cost.online / 1e6:.{digits}f}", f"{cost.dealer / 1e6:.{digits - 1}f}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    models: str = "bert-base,bert-large,gpt2",
    presets: str = ",".join(PRESETS),
    seq: int = 128,
    layers: Annotated[int | None, typer.Option(help="Default: the shapes'.")] = None,
    ranges: Annotated[Path | None, typer.Option(help="A trained model's, as for `ditto bench model`.")] = None,
) -> None:
    real = layer_ranges(read_json(ranges)) if ranges else ()
    for shape in models.split(","):
        typer.echo("\n".join(table(shape, presets.split(","), seq, real, layers)))


if __name__ == "__main__":
    typer.run(main)

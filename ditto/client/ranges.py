"""What the range guard says at the client: the layers in which a value left its calibrated zone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ditto.engine.program import GUARD, Program

ADVICE = "calibrate on text nearer to yours"


def take_marks(program: Program, outputs: dict[str, torch.Tensor], stage: int) -> list[str]:
    """Names of the layers in which a value left its zone; takes the guard's own output out of `outputs`."""
    words = outputs.pop(GUARD, None)
    if words is None:
        return []
    found = [name for name, word in zip(program.guarded, words.tolist(), strict=True) if word]
    return [f"token {stage + 1}, {name}" for name in found] if stage else found


def fields(checked: bool, marks: Sequence[str]) -> dict[str, Any]:
    """What `--json` says of a job; `in_range` is null where nobody looked."""
    return {"in_range": not marks if checked else None, "out_of_range_layers": list(marks)}


def sentence(marks: Sequence[str], whose: str) -> str:
    """In words, for stderr."""
    few = list(marks[:6])
    more = f" and {len(marks) - len(few)} more" if len(marks) > len(few) else ""
    return f"{whose} may be wrong: values left their calibrated range in {', '.join(few)}{more}; {ADVICE}"

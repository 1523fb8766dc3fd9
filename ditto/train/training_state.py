"""DIR/.training: all that a run needs to go on. JSON and safetensors, no pickle; valid after every cut."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ditto import files
from ditto.errors import UsageError
from ditto.files import make_directory
from ditto.models.export import write_json, write_tensors

WORDS = {  # what a user set, by what is compared
    "steps": "--steps or --epochs", "batch": "--batch", "context": "--context", "lr": "--lr", "seed": "--seed",
    "validate_every": "--validations", "bf16": "--bf16", "train": "the text of --train", "valid": "the text of --valid",
    "model": "the model's sizes", "weights": "the weights at the start", "dropout": "--dropout",
    "schedule": "--schedule", "task": "--task, --labels, --metric or --pooling", "class": "the model's class",
    "preset": "--preset", "rates": "--ranges-lr, --stage1-lr or --stage2-lr", "longest": "--length",
    "budget_mb": "--budget-mb", "max_range": "--max-range", "strength": "--strength", "check_every": "--check-every",
    "calibrated": "--calibrated",
}  # fmt: skip
_NAME = re.compile(r"state-[0-9]{1,18}\.safetensors")
MODEL, BEST = "model.safetensors", "best.safetensors"


@dataclass
class State:
    position: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save(directory: Path, identity: dict[str, Any], position: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Tensors first, under a name of their own; state.json, replaced last, says which ones are valid."""
    folder = directory / ".training"
    make_directory(folder)
    name = f"state-{position['step']}.safetensors"
    write_tensors(folder / name, {key: tensor.cpu() for key, tensor in tensors.items()})
    write_json(folder / "state.json", {"settings": identity, "position": position, "tensors": name})
    for path in folder.glob("state-*.safetensors*"):
        if path.name != name:
            path.unlink()


def load(directory: Path, identity: dict[str, Any]) -> State | None:
    """What `save` wrote, or None where nothing is. Raises UsageError for other settings or unreadable files."""
    folder = directory / ".training"
    try:
        document = files.read_json(folder / "state.json")
        before, position, name = document["settings"], document["position"], document["tensors"]
        if not isinstance(before, dict) or not isinstance(position, dict) or not _NAME.fullmatch(name):
            raise ValueError("not what training writes")
    except FileNotFoundError:
        if (directory / MODEL).exists():
            raise UsageError(f"{directory} holds a checkpoint but no state of training: name another --out") from None
        return None
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'state.json'}: {error}; name another --out") from error
    now = json.loads(json.dumps(identity))
    other = [key for key in (*WORDS, *sorted({*before, *now} - {*WORDS})) if before.get(key) != now.get(key)]
    if other:
        changed = "; ".join(_change(key, before.get(key), now.get(key)) for key in other)
        raise UsageError(f"{directory} was started with other settings ({changed}): use the same or another --out")
    try:
        tensors = load_file(folder / name)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{folder / name}: {error}; name another --out") from error
    if (folder / BEST).exists():
        (folder / BEST).replace(directory / MODEL)
    return State(position, tensors)


def _change(key: str, before: Any, now: Any) -> str:
    plain = isinstance(before, int | float) and isinstance(now, int | float)
    word = WORDS.get(key, key)
    return f"{word}: {before}, now {now}" if plain else word


def set_aside(directory: Path) -> None:
    """Keep the checkpoint's weights while an early validation's take their place; `load` brings them back."""
    (directory / MODEL).replace(directory / ".training" / BEST)

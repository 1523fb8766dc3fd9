"""`ditto.json` beside a checkpoint: its public description, calibrated by whoever trained exactly these weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ditto import files
from ditto.errors import BadCheckpoint, DittoError, VersionMismatch
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, parse

NAME = "ditto.json"
FORMAT = 1
ADVICE = "name texts with --calibrate, or make the checkpoint again"


def weights_digest(tensors: Tensors) -> str:
    """SHA-256 of fp32 tensors, their names and shapes, in the order of the names: as hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return found.hexdigest()


def save_calibrated(directory: Path, description: Description, tensors: Tensors) -> None:
    """`tensors` as a Checkpoint of the directory will have them, their neurons in the description's order."""
    document = {
        "format": FORMAT, "weights": weights_digest(tensors), "description": json.loads(description.text()),
    }  # fmt: skip
    files.write(directory / NAME, json.dumps(document) + "\n")


def is_calibrated(directory: Path) -> bool:
    """Does a checkpoint's directory bring its description?"""
    return (directory / NAME).is_file()


def load_calibrated(checkpoint: Checkpoint) -> Description:
    """The description that a checkpoint brings. Raises BadCheckpoint for one that is damaged, of another version, or
    was made for other weights."""
    path = (checkpoint.directory or Path()) / NAME
    try:
        document: Any = files.read_json(path)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}; {ADVICE}") from error
    if not isinstance(document, dict) or set(document) != {"format", "weights", "description"}:
        raise BadCheckpoint(f"{path}: not what ditto writes; {ADVICE}")
    try:
        if document["format"] != FORMAT:
            raise VersionMismatch
        description = parse(json.dumps(document["description"]))
    except VersionMismatch:
        raise BadCheckpoint(f"{path}: written by another version of ditto; {ADVICE}") from None
    except DittoError as error:
        raise BadCheckpoint(f"{path}: {error}; {ADVICE}") from error
    # how its logits are read is no matter of ranges, and earlier versions did not write it
    read = description.dimensions.model_copy(update={"problem_type": checkpoint.dimensions.problem_type})
    description = description.model_copy(update={"dimensions": read})
    same = (description.architecture, description.dimensions) == (checkpoint.class_name, checkpoint.dimensions)
    if not same or document["weights"] != weights_digest(checkpoint.tensors):
        raise BadCheckpoint(f"{path}: its ranges were calibrated for other weights than these; {ADVICE}")
    return description

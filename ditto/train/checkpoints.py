"""Other weights of a checkpoint's model, as a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ditto import files
from ditto.errors import BadCheckpoint
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.encoder.encoder import Encoder
from ditto.models.export import write_tensors
from ditto.models.tensors import SINGLE, read_tensors, without_prefix

BESIDE = (
    "config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "modules.json", "1_Pooling/config.json",
)  # fmt: skip


def save_like(directory: Path, model: Checkpoint, tensors: Tensors, beside: Callable[[], None]) -> None:
    """A checkpoint with `tensors` in the place of the model's, its files otherwise; `beside` writes what else belongs
    there. The tensors come last."""
    source = model.directory
    if source is None or not isinstance(model.architecture, Encoder):
        raise BadCheckpoint("only an encoder's checkpoint is saved with other weights")
    named = model.architecture.published(tensors, model.dimensions)
    raw = read_tensors(source)
    full = dict(zip(without_prefix(raw, model.architecture.prefixes), raw, strict=True))
    for name, tensor in named.items():
        before = raw[full[name]]
        if len(before) > len(tensor):  # rows of positions that come before the first token's
            tensor = torch.cat([before[: len(before) - len(tensor)], tensor])
        raw[full[name]] = tensor
    files.make_directory(directory)
    for name in BESIDE:
        if (source / name).is_file() and source.resolve() != directory.resolve():
            files.make_directory((directory / name).parent)
            files.write(directory / name, (source / name).read_bytes())
    beside()
    write_tensors(directory / SINGLE, raw)

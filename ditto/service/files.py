"""Tensors go to and from disk one at a time, in files that only their owner may read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from ditto import files
from ditto.engine.program import Wire
from ditto.ring import carrier

_DTYPES = {torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}


def save_tensors(path: Path, wires: dict[str, Wire], tensors: Iterable[torch.Tensor]) -> None:
    """Write ring tensors, in the order of `wires`, as a safetensors file. Only one is in memory at a time."""
    header: dict[str, object] = {}
    offset = 0
    for name, wire in wires.items():
        dtype = carrier(wire.ring)
        end = offset + math.prod(wire.shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(wire.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(path, files.PRIVATE) as fresh, fresh.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for wire, tensor in zip(wires.values(), tensors, strict=True):
            flat = tensor.to(carrier(wire.ring)).contiguous().reshape(-1)
            file.write(flat.numpy().data)


def load_tensors(path: Path, wires: dict[str, Wire]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file that `save_tensors` wrote for the same wires.

    Each is a private mapping of its own: it takes memory when it is read and gives it back when it is dropped.
    """
    with path.open("rb") as file:
        offset = int.from_bytes(file.read(8), "little") + 8
    for name, wire in wires.items():
        dtype = carrier(wire.ring)
        size = math.prod(wire.shape) * dtype.itemsize
        raw = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(size,))
        offset += size
        yield name, torch.from_numpy(raw).view(dtype).reshape(wire.shape)

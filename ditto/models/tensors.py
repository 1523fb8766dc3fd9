"""A checkpoint's tensors as Hugging Face writes them: one safetensors file, or shards with an index. No pickle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from ditto import files
from ditto.errors import BadCheckpoint
from ditto.models import advice, compact

Tensor = torch.Tensor
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
REAL = ("F32", "F16", "BF16", "F64")
BUFFERS = ("BOOL", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
# scale and shift as the first BERT checkpoints call them
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All real tensors of a checkpoint by their names, fp32: from fp16 and bf16 exactly, from fp64 rounded, from int8
    with scales (`ditto.models.compact`) as their product.

    Other integers and booleans (`position_ids`, causal masks) are buffers that follow from the configuration; they are
    left out. safetensors checks the sizes that a header declares against each other and the file before a tensor is
    read, so that memory is bounded by four times the files' sizes. Raises BadCheckpoint naming the file, shard or
    tensor; for a pickled checkpoint, with the command that converts it.
    """
    if (directory / SINGLE).exists():
        shards: dict[str, list[str] | None] = {SINGLE: None}
    elif (directory / INDEX).exists():
        shards = dict(_shards(directory / INDEX))
    elif pickled := next((name for name in PICKLED if (directory / name).exists()), None):
        raise BadCheckpoint(f"{directory}: {pickled} is {advice.PICKLED}; {advice.conversion(directory)}")
    else:
        other = advice.other_format(directory)
        raise BadCheckpoint(other or f"{directory}: neither {SINGLE} nor {INDEX}; {advice.LAYOUT}")
    return _collect(pair for shard, names in shards.items() for pair in _read(directory / shard, names))


def without_prefix(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The tensors by their names less the first of `prefixes` ("bert.", …) that a name begins with, once.

    Names without one (`classifier.weight`) stay. Raises BadCheckpoint for two names that become one.
    """
    found: dict[str, str] = {}
    for name in tensors:
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        short = name.removeprefix(prefix)
        if short in found:
            raise BadCheckpoint(f"tensors {found[short]} and {name}: one of the two, since both mean {short}")
        found[short] = name
    return {short: tensors[name] for short, name in found.items()}


def _shards(index: Path) -> dict[str, list[str]]:
    """The names in each shard. A shard may be a link, as in a cache, but its path stays in the directory."""
    try:
        document = files.read_json(index)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{index}: {error}") from error
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise BadCheckpoint(f"{index}: weight_map, the file of each tensor, is missing or no such map")
    shards: dict[str, list[str]] = {}
    for name, shard in places.items():
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or "\\" in shard or path.suffix != ".safetensors":
            raise BadCheckpoint(f"{index}: tensor {names[0]} in {shard!r}: no safetensors file of this directory")
        if not os.path.isfile(index.parent / shard):  # a Path raises for a name that is too long
            raise BadCheckpoint(f"{index.parent / shard[:400]}: no such file; {index.name} has tensor {names[0]} in it")
    return shards


def _read(path: Path, names: list[str] | None) -> Iterable[tuple[str, Tensor]]:
    """The tensors of one file: those that an index has in it, or all."""
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            compacted = compact.matrices(file, present)
            for name in sorted(present) if names is None else names:
                if name not in present:
                    raise BadCheckpoint(f"{path}: tensor {name} is missing, which {INDEX} has in it")
                dtype = file.get_slice(name).get_dtype()
                if name in compacted:
                    yield name, compact.read(file, name)
                    continue
                if dtype in BUFFERS and name.endswith(".weight"):
                    raise BadCheckpoint(f"{path}: tensor {name} is {dtype} without {name + compact.SCALE}")
                if dtype in BUFFERS or name.removesuffix(compact.SCALE) in compacted:
                    continue
                if dtype not in REAL:
                    raise BadCheckpoint(f"{path}: tensor {name} is {dtype}: only {', '.join(REAL)} are read")
                yield name, file.get_tensor(name).float()
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def _collect(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in pairs:
        new = name
        for old, current in LEGACY.items():
            new = name.removesuffix(old) + current if name.endswith(old) else new
        if new in tensors:
            raise BadCheckpoint(f"tensor {new} is there twice, once as {name}")
        tensors[new] = tensor
    return tensors

"""Files that only their owner may read, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def _commit(fresh: Path, path: Path) -> None:
    fresh.chmod(0o600)
    fresh.replace(path)


def write_secret(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    _commit(fresh, path)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh)
    _commit(fresh, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)

"""A checkpoint's matrices in int8: a quarter of fp32. `export.save_compact` writes them, `tensors.read_tensors` reads.

In model.safetensors, a matrix NAME [rows, columns] is two tensors:

    NAME         I8, [rows, columns]: the levels q, from -127 to 127
    NAME_scale   F32 (or F16, BF16), [rows, 1]: the scale s of each row, finite and above 0

and means s q. Every other tensor, vectors above all, is a float as in any checkpoint; config.json and the tokenizer's
files lie beside it and say nothing of it. Names and shapes are those of the `int-quantized` format of the library
compressed-tensors with one scale a channel. Rows are a linear layer's outputs and a table's words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ditto.errors import BadCheckpoint

Tensor = torch.Tensor
SCALE = "_scale"
LEVELS = "I8"
SCALES = ("F32", "F16", "BF16")
MOST = 127  # of |q|: symmetric, -128 is not used


def levels_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """q int8 [rows, columns] and s fp32 [rows, 1] with |matrix - s q| <= s / 2 but for fp32's own rounding.

    1. s = max |row| / 127; 1 for a row of zeros.
    2. q = matrix / s, rounded to the nearest, ties to even.
    """
    most = matrix.detach().float().abs().amax(1, keepdim=True)
    scale = torch.where(most > 0, most / MOST, torch.ones_like(most)).clamp_min(torch.finfo(torch.float32).tiny)  # 1
    return (matrix / scale).round().clamp(-MOST, MOST).to(torch.int8), scale  # 2


def rounded(matrix: Tensor) -> Tensor:
    """The matrix [rows, columns] as it is after it was written and read again."""
    levels, scale = levels_of(matrix)
    return levels.float() * scale


def compacted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as levels and scales, everything else in fp32. Raises BadCheckpoint for what is not finite."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise BadCheckpoint(f"tensor {name}: infinite, or no number")
        if tensor.dim() == 2:
            found[name], found[name + SCALE] = levels_of(tensor)
        else:
            found[name] = tensor.float()
    return found


def matrices(file: Any, names: Collection[str]) -> set[str]:
    """Those names of an open safetensors file that are levels with scales."""
    return {name for name in names if name + SCALE in names and file.get_slice(name).get_dtype() == LEVELS}


def read(file: Any, name: str) -> Tensor:
    """The matrix `name` of an open safetensors file, fp32. Shapes and types are compared before anything is read.

    Raises BadCheckpoint.
    """
    levels, scales = file.get_slice(name), file.get_slice(name + SCALE)
    shape, of_scales = list(levels.get_shape()), list(scales.get_shape())
    if len(shape) != 2 or of_scales != [shape[0], 1]:
        raise BadCheckpoint(f"tensor {name}: {shape} levels with scales {of_scales}; one scale a row expected")
    if scales.get_dtype() not in SCALES:
        raise BadCheckpoint(f"tensor {name + SCALE} is {scales.get_dtype()}: only {', '.join(SCALES)} are read")
    scale = file.get_tensor(name + SCALE).float()
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise BadCheckpoint(f"tensor {name + SCALE}: a scale is infinite, no number, or not above 0")
    matrix: Tensor = file.get_tensor(name).float().mul_(scale)
    return matrix

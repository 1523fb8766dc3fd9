"""How the C library keeps memory that tensors have freed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap

import torch

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # mallopt(3)
_KEPT = 1 << 30  # bytes
_APART = 1 << 20  # bytes
_MAPPED = 64 << 20  # bytes of a tensor that is mapped by itself: in the heap a few such leave gaps as large as they are


def tune_memory() -> None:
    """glibc: one heap for all threads, and up to a gigabyte of freed tensors stays in it for the next ones.

    Otherwise every RPC thread keeps a heap of its own, and each large tensor is mapped and zeroed anew, which can take
    longer than filling it. The largest are mapped all the same, so that a long job's heap does not grow by their gaps.
    Other C libraries keep their ways.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        if not libc.mallopt(_MMAP_THRESHOLD, _MAPPED):  # glibc before 2.35 takes no more than half of a thread's heap
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)


def give_back() -> None:
    """glibc: the pages of what was freed so far go back to the system, after work that took more than what comes next.

    In jobs it would undo `tune_memory`: they take the same again and again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def apart(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for what is kept: large tensors are mapped by themselves, and leave no gaps in the heap."""
    size = math.prod(shape) * dtype.itemsize
    if size < _APART:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype).reshape(shape)

"""Figures: a number of the report, and how people are shown it."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    value: float  # the report's own
    shown: str


def size(n: float) -> str:
    """Bytes for people, in powers of ten as networks count."""
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def seconds(value: float) -> Figure:
    return Figure(value, f"{value:.2f}" if value >= 0.995 or value == 0 else f"{value:.3f}")


def milliseconds(value: float) -> Figure:
    """A figure in seconds, shown in milliseconds."""
    return Figure(value, f"{1000 * value:.2f}")


def nbytes(value: int) -> Figure:
    return Figure(value, size(value))


def count(value: int) -> Figure:
    return Figure(value, f"{value:,}")

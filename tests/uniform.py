"""Are bytes fair draws? Limits that a fair source passes but for a stated probability."""

from __future__ import annotations

import math

import numpy as np


def chi_square(data: bytes) -> float:
    """Pearson's statistic of the 256 byte values. Take 2,560 bytes or more, 10 expected of each value."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2).sum() / expected)


def chi_square_limit(missed: float = 1e-10, freedom: int = 255) -> float:
    """What a chi-square variable exceeds with a probability of at most `missed` (Laurent and Massart 2000, Lemma 1):
    P(X >= d + 2 sqrt(d t) + 2 t) <= e^-t."""
    t = -math.log(missed)
    return freedom + 2 * math.sqrt(freedom * t) + 2 * t


def deviation_limit(missed: float = 1e-10) -> float:
    """How many standard deviations the number of ones among n fair bits strays with a probability of at most `missed`,
    for every n (Hoeffding 1963): P(|ones - n/2| >= z sqrt(n)/2) <= 2 e^(-z^2/2)."""
    return math.sqrt(2 * math.log(2 / missed))

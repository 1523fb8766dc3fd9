"""Least-squares fits of harmonics, with a ridge that keeps the coefficients small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
RIDGE = 1e-8  # of the mean square: large coefficients amplify the rounding of dealt values


@functools.cache
def fit(
    g: Callable[[Array], Array], bound: float, period: float, harmonics: int, odd: bool
) -> tuple[float, tuple[float, ...], float]:
    """Fit g on [-bound, bound] by c0 + sum_k c_k cos(2 pi k x / period), or sines for an odd g.

    Returns (c0, c, maximum absolute error on the range). Coefficients are rounded to 9 decimals, so that every
    process that compiles the program gets the same ones.
    """
    x = np.linspace(-bound, bound, 4001)
    angle = np.outer(x, np.arange(1, harmonics + 1)) * (2 * math.pi / period)
    basis = np.sin(angle) if odd else np.cos(angle)
    if not odd:
        basis = np.concatenate([np.ones((len(x), 1)), basis], axis=1)
    gram = basis.T @ basis / len(x)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    c = np.round(np.linalg.solve(gram, basis.T @ g(x) / len(x)), 9)
    error = float(np.abs(basis @ c - g(x)).max())
    return (0.0, tuple(c.tolist()), error) if odd else (float(c[0]), tuple(c[1:].tolist()), error)


def choose(
    g: Callable[[Array], Array], bound: float, tolerance: float, odd: bool, most: int = 40
) -> tuple[float, float, tuple[float, ...], float]:
    """Return (period, c0, c, error): the fewest harmonics within tolerance, for the smallest usable period 2^k.

    If none is, the best fit with `most` harmonics: its error stands in what it returns.
    """
    period = 2.0 ** math.ceil(math.log2(2 * bound * 1.15))
    for harmonics in range(4, most + 1, 2):
        c0, c, error = fit(g, bound, period, harmonics, odd)
        if error <= tolerance:
            break
    return period, c0, c, error

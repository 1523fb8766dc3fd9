"""Least-squares fits of harmonics, made once, when a model is imported, and kept in its public description."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ditto.errors import BadDescription

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
RIDGE = 1e-8  # of the mean square: large coefficients amplify the rounding of dealt values
MOST = 128  # harmonics
FEWEST, STEP, USUAL = 4, 2, 40  # what `choose` tries: from, by, up to
SLACK = 1.15  # of the period over the range: outside it the fit goes on smoothly
POINTS = 4001  # of the grid
FEWEST_FREE = 3
BEYOND = 0.01  # weight of what lies outside the range of an even function: enough to keep it near the function there
RATIOS = (2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1, 3.2)  # of a free period over the bound: a guard can tell what is outside
Coefficient = Annotated[float, Field(ge=-1e6, le=1e6)]


class Fit(BaseModel):
    """g(x) = constant + sum_k c_k cos(2 pi k x / T) for an even g, sines for an odd one, on |x| <= bound.

    Even functions here are |x|/2 but for a bend at 0, so the triangle wave of their period, whose even harmonics are 0:
    half of the c_k are, and cost nothing (`ditto.ops.Harmonic`).
    T = 2^period / scale. A `free` fit has the best T, and its program computes scale g(x) of scale x, whose period is a
    power of two: the weights before and after take the scale. `function` names g (a `Smooth`, such as
    `ditto.functions.gelu.EVEN`); `tolerance` is what was asked for, `error` the largest difference found on a grid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    function: Annotated[str, Field(min_length=1, max_length=32)]
    bound: Annotated[float, Field(gt=0, le=1e6)]
    tolerance: Annotated[float, Field(gt=0, le=1)]
    period: Annotated[int, Field(ge=-8, le=11)]
    free: bool = False
    scale: Annotated[float, Field(ge=0.5, le=2)] = 1.0
    odd: bool
    constant: Coefficient
    coefficients: Annotated[tuple[Coefficient, ...], Field(min_length=1, max_length=2 * MOST, strict=False)]
    error: Annotated[float, Field(ge=0, le=1e6)]


class Fits:
    """The fits that a description holds, by what they were made for."""

    def __init__(self, fits: Iterable[Fit] = ()) -> None:
        self._found = {(f.function, f.bound, f.tolerance, f.free): f for f in fits}

    def find(self, smooth: Smooth, bound: float, tolerance: float, free: bool = False) -> Fit:
        """The fit of a function on |x| <= bound. Raises BadDescription where there is none."""
        found = self._found.get((smooth.name, bound, tolerance, free))
        if found is None or found.odd != smooth.odd:
            raise BadDescription(
                f"functions: no fit of {smooth.name} on +-{bound:.4g} within {tolerance}; import the model again"
            )
        return found

    def all(self) -> tuple[Fit, ...]:
        return tuple(self._found.values())


class Fitting(Fits):
    """Makes what is asked for and is not there yet: at import only, since another processor rounds otherwise.

    Holds what was asked for; of `known` fits, those.
    """

    def __init__(self, known: Iterable[Fit] = ()) -> None:
        super().__init__()
        self._known = Fits(known)

    def find(self, smooth: Smooth, bound: float, tolerance: float, free: bool = False) -> Fit:
        key = smooth.name, bound, tolerance, free
        if key not in self._found:
            made = self._known._found.get(key)
            self._found[key] = made or (choose_free if free else choose)(smooth, bound, tolerance)
        return self._found[key]


@dataclass(frozen=True)
class Smooth:
    """A function to be fitted: its name, itself in floats, and whether it is odd (else it is even)."""

    name: str
    g: Callable[[Array], Array]
    odd: bool


def fit(smooth: Smooth, bound: float, period: float, harmonics: int) -> tuple[float, tuple[float, ...], float]:
    """Fit over a period: (constant, coefficients, largest error on a grid over |x| <= bound).

    An even function takes odd multiples of the frequency, with zeros between. From (T/2 - x) to x the fit is then odd
    about T/4, as a line is: g is one there from where its bend ends, T/2 - bound being within or near that.
    An even function is fitted outside its bound, too, with little weight: else its coefficients grow, and a value a
    little outside comes out far off. An odd one is not: it would have to jump half a period away.
    Coefficients are rounded to 9 decimals, far below what 11 fraction bits resolve: a description stays short.
    """
    x = np.linspace(0.0, period / 2, POINTS)
    inside = x <= bound
    weight = np.where(inside, 1.0, 0.0 if smooth.odd else BEYOND)
    multiples = np.arange(1, harmonics + 1) if smooth.odd else np.arange(1, 2 * harmonics, 2)
    angle = np.outer(x, multiples) * (2 * math.pi / period)
    basis = np.sin(angle) if smooth.odd else np.cos(angle)
    if not smooth.odd:
        basis = np.concatenate([np.ones((len(x), 1)), basis], axis=1)
    weighted = basis.T * weight
    gram = weighted @ basis / inside.sum()
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    c = np.round(np.linalg.solve(gram, weighted @ smooth.g(x) / inside.sum()), 9)
    error = float(np.abs(basis @ c - smooth.g(x))[inside].max())
    if smooth.odd:
        return 0.0, tuple(c.tolist()), error
    values = np.zeros(2 * harmonics - 1)
    values[::2] = c[1:]
    return float(c[0]), tuple(values.tolist()), error


@lru_cache(maxsize=1024)
def choose(smooth: Smooth, bound: float, tolerance: float) -> Fit:
    """The fewest harmonics within tolerance, for the smallest usable period 2^k or the next.

    If none is, the best fit with `USUAL` harmonics: its error stands in what it returns.
    """
    least = math.ceil(math.log2(2 * bound * SLACK))
    for harmonics in range(FEWEST, USUAL + 1, STEP):
        # twice the period may take an even function fewer: it has a second bend near T/2
        tried = [(*fit(smooth, bound, 2.0**p, harmonics), p) for p in range(least, least + 2 - smooth.odd)]
        constant, coefficients, error, period = min(tried, key=lambda found: found[2])
        if error <= tolerance:
            break
    return Fit(
        function=smooth.name, bound=bound, tolerance=tolerance, period=period, odd=smooth.odd, constant=constant,
        coefficients=coefficients, error=error,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def choose_free(smooth: Smooth, bound: float, tolerance: float) -> Fit:
    """The fewest harmonics within tolerance over the best of the periods by RATIOS.

    If none is, the best fit with about MOST: its error stands in what it returns. What is tried begins at a quarter of
    the bound and grows by a 32nd of it: a bend that is 1 wide takes half as many harmonics as its distance to the ends.
    """
    harmonics = max(FEWEST_FREE, int(bound / 4))
    while True:
        tried = [(*fit(smooth, bound, ratio * bound, harmonics), ratio * bound) for ratio in RATIOS]
        constant, coefficients, error, period = min(tried, key=lambda found: found[2])
        more = harmonics + max(1, int(bound / 32))
        if error <= tolerance or more > MOST:
            break
        harmonics = more
    log2 = round(math.log2(period))
    return Fit(
        function=smooth.name, bound=bound, tolerance=tolerance, free=True, period=log2, scale=2.0**log2 / period,
        odd=smooth.odd, constant=constant, coefficients=coefficients, error=error,
    )  # fmt: skip

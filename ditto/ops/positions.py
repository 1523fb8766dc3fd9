"""A bias for every distance between two positions, spread over all pairs of positions."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ditto.ops.base import Rearrangement, Tensor, register


def _bucket(distance: int, count: int, longest: int) -> int:
    """T5's bucket of |key - query|: one for each distance below e = count / 2, then m = count - e growing ones.

    e + floor(m log(x / e) / log(longest / e)), at most count - 1: the largest k < m with x^m >= e^(m - k) longest^k, in
    integers, so that every process agrees.
    """
    exact = count // 2
    if distance < exact:
        return distance
    steps, k = count - exact, 0
    while k < steps - 1 and distance**steps >= exact ** (steps - k - 1) * longest ** (k + 1):
        k += 1
    return exact + k


@functools.lru_cache(maxsize=64)
def buckets(n: int, count: int, longest: int) -> Tensor:
    """[n, n]: the bucket of each (query, key), the upper half of `count` for keys that come later. (Raffel et al. 2020,
    section 2.1, bidirectional.)"""
    half = count // 2
    by_distance = torch.tensor([_bucket(x, half, longest) for x in range(n)])
    offset = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    return by_distance[offset.abs()] + half * (offset > 0)


@register
@dataclass(frozen=True)
class RelativePositions(Rearrangement):
    """[heads, buckets] -> [heads, n, n]: for a query i and a key j the entry of the bucket of j - i. Local; exact.

    The rule is public and given by three numbers: a program's text does not grow with the row.
    """

    n: int
    count: int
    longest: int

    def move(self, *x: Tensor) -> Tensor:
        return x[0][..., buckets(self.n, self.count, self.longest)]

"""A bias for every distance between two positions, spread over all pairs of positions."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch

from ditto.ops.base import Rearrangement, Tensor, register


def _starts(count: int, longest: int) -> list[int]:
    """The least distance |key - query| of each of T5's `count` buckets but the first, 0.

    One bucket for each distance below e = count // 2, then m = count - e growing ones. A distance x >= e lies in bucket
    e + k for the largest k < m with k <= m log(x / e) / log(longest / e), which is x^m >= e^(m - k) longest^k: in
    integers, so that every process agrees.
    """
    exact = count // 2
    steps = count - exact

    def power(x: int) -> int:
        return int(x**steps)

    growing = (exact ** (steps - k) * longest**k for k in range(1, steps))
    return [*range(1, exact + 1), *(bisect_left(range(longest), least, key=power) for least in growing)]


def buckets(n: int, count: int, longest: int) -> Tensor:
    """[n, n]: the bucket of each (query, key), the upper half of `count` for keys that come later. (Raffel et al. 2020,
    section 2.1, bidirectional.)"""
    half = count // 2
    by_distance = torch.bucketize(torch.arange(n), torch.tensor(_starts(half, longest)), right=True)
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

    def __post_init__(self) -> None:
        if self.count < 4 or self.count % 2 or self.longest <= self.count // 4:
            raise ValueError(f"{self.count} buckets for distances up to {self.longest}")

    def move(self, *x: Tensor) -> Tensor:
        return x[0][..., buckets(self.n, self.count, self.longest)]

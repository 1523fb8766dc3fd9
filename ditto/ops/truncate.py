"""Truncation by shrinking the ring: local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Correlations, Op, Party, Tensor, register
from ditto.ring import cast, signed


@register
@dataclass(frozen=True)
class TruncateReduce(Op):
    """Z_2^l, f -> Z_2^out, f - t with out <= l - t: the paper's downcast (Ditto, section 4.2), no round.

    1. Each party shifts its own share: floor([x]_i / 2^t) mod 2^(l-t).
    2. Party 0 adds 1, which centres the error: the two floors lose one unit on average.
    The result is x / 2^t rounded stochastically: within 1 ulp of the nearest, never a wrap-around error.
    """

    bits: int
    t: int
    out: int

    def __post_init__(self) -> None:
        if not 0 < self.out <= self.bits - self.t:
            raise ValueError(f"truncate-reduce {self.bits} by {self.t} to {self.out}: the ring shrinks by t at least")

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        half = (1 << self.t) >> 1
        return (signed(signed(x[0] + half, self.bits) >> self.t, self.out),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] * 2.0**-self.t,)

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0] >> self.t, self.out)  # what an arithmetic shift brings in lies above the out <= l - t bits kept
        return (y + 1 if p.party == 0 and self.t else y,)

    def ulp(self) -> float:
        return 1.0 if self.t else 0.0

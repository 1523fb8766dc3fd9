"""Extension to a larger ring: the paper's upcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Correlations, Masked, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ring import cast, shift_right, signed, unsigned


@register
@dataclass(frozen=True)
class Extend(Op):
    """Opened [x] on Z_2^l -> the same integer on Z_2^out, out > l, for |x| < 2^(l-2) (Ditto, section 4.2).

    x + 2^(l-2) = m' - r + 2^l msb(r) (1 - msb(m')) over the integers, with m' = m + 2^(l-2) mod 2^l.
    1. The dealer shares r (as an integer, on Z_2^out) and msb(r) (on the out - l bits that survive).
    2. [x] = m' - [r] + 2^l (1 - msb(m')) [msb r] - 2^(l-2).
    Exact; no round beyond the opening. A value outside the bound comes back off by 2^l.
    """

    shape: Shape
    bits: int
    out: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        offset = 1 << (self.bits - 2)
        return (signed(unsigned(x[0] + offset, self.bits) - offset, self.out),)

    def dealt(self) -> Types:
        return {"r": Shared(self.shape, self.out), "msb": Shared(self.shape, self.out - self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = unsigned(masks[0], self.bits)
        return {"r": r, "msb": r >> (self.bits - 1)}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        masked: Masked = x[0]
        offset = 1 << (self.bits - 2)
        m = masked.value + offset
        keep = 1 - (shift_right(m, self.bits - 1, self.bits) & 1)
        y = (cast(k["msb"], self.out) << self.bits) * cast(keep, self.out) - k["r"]  # 2
        if p.party == 0:
            y = y + cast(unsigned(m, self.bits), self.out) - offset
        return (y,)

"""Extension to a larger ring: the paper's upcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ring import carrier, cast, signed, unsigned


def opened_integer(value: Tensor, bits: int, out: int) -> tuple[Tensor, Tensor]:
    """m' - 2^(bits-2) on Z_2^out, and the bit 1 - msb(m'), of an opened m on Z_2^bits; bits < out."""
    offset = 1 << (bits - 2)
    m = value.to(carrier(bits + 1)) + offset
    m &= (1 << bits) - 1
    keep = (m >> (bits - 1)).bitwise_xor_(1)
    return cast(m, out).sub_(offset), keep


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

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return x

    def dealt(self) -> Types:
        return {"r": Shared(self.shape, self.out), "msb": Shared(self.shape, self.out - self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = unsigned(masks[0], self.bits)
        return {"r": r, "msb": r >> (self.bits - 1)}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        public, keep = opened_integer(x[0].value, self.bits, self.out)
        y = cast(k["msb"] * keep.to(k["msb"].dtype), self.out).bitwise_left_shift_(self.bits).sub_(k["r"])  # 2
        return (y.add_(public) if p.party == 0 else y,)

"""Truncation: by shrinking the ring (free) and by a pair inside the ring (one opening)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditto.ops.base import Cost, Dealer, Masked, Op, Party, Shape, Tensor, need, packed_bytes, register
from ditto.ring import cast, shift_right, signed


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

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        y = cast(x[0] >> self.t, self.out)  # what an arithmetic shift brings in lies above the out <= l - t bits kept
        return (y + 1 if p.party == 0 and self.t else y,)

    def ulp(self) -> float:
        return 1.0 if self.t else 0.0


@register
@dataclass(frozen=True)
class TruncatePair(Op):
    """[x] on Z_2^l, opened -> floor(x / 2^t) on the same ring, for |x| < 2^(l-2). No round beyond the opening.

    x + 2^(l-2) = m - r + 2^l wrap with wrap = msb(r) (1 - msb(m)).
    1. The dealer shares u = r >> t (of unsigned r) and w = 2^(l-t) msb(r).
    2. [y] = (m' >> t) - [u] + (1 - msb(m')) [w] - 2^(l-2-t), with m' = m + 2^(l-2).
    Error: -1 or 0 of the floor, centred by rounding: within 1 ulp. (SecureML's pair with ABY3's exact wrap.)
    """

    shape: Shape
    bits: int
    t: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed((signed(x[0], self.bits) + ((1 << self.t) >> 1)) >> self.t, self.bits),)

    def deal(self, d: Dealer, *masks: Tensor | None) -> tuple[Tensor | None, ...]:
        r = cast(need(masks[0]), self.bits)
        d.share(shift_right(r, self.t, self.bits), self.bits)
        d.share(shift_right(r, self.bits - 1, self.bits) & 1, self.t)
        return (None,)

    def prepare(self, p: Party, *masks: Tensor | None) -> Any:
        return p.dealt(self.shape, self.bits), p.dealt(self.shape, self.t)

    def online(self, p: Party, k: Any, *x: Any) -> tuple[Any, ...]:
        masked: Masked = x[0]
        u, w = k
        offset = 1 << (self.bits - 2)
        m = masked.value + offset
        wrap = (cast(w, self.bits) << (self.bits - self.t)) * (1 - (shift_right(m, self.bits - 1, self.bits) & 1))
        y = wrap - u
        if p.party == 0:
            # m >> t minus r >> t is the floor or the floor plus 1: no centring is due
            y = y + shift_right(m, self.t, self.bits) - (offset >> self.t)
        return (y,)

    def cost(self) -> Cost:
        return Cost(0, 0, packed_bytes(self.shape, self.bits) + packed_bytes(self.shape, self.t))

    def ulp(self) -> float:
        return 1.0

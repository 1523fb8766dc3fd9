"""Matrix products: a weight under a fixed mask, and two activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register
from ditto.ops.product import broadcast
from ditto.ring import batched_product, carrier, cast, signed
from ditto.ring.kernels import RingMatrix, float_product


class RightHand(Protocol):
    """A matrix W that is multiplied by: `product(x)` is x W."""

    def product(self, x: Tensor) -> Tensor: ...


@dataclass
class WeightShare:
    """One party's view of a weight W under a fixed mask B: F = W + B is public to both parties.

    `share` is d_i F - [B]_i, an additive share of W (d_0 = 1, d_1 = 0), which may be expanded for each product;
    `masked` is F, prepared once.
    """

    share: RightHand
    masked: RingMatrix


@register
@dataclass(frozen=True)
class MatmulWeight(Op):
    """Opened X = M - A [rows, K] times a weight W = F - B [K, N] whose mask B is fixed for the model.

    F was opened once per model. XW = M W - A F + A B.
    1. Offline: the dealer shares C = A B; each party computes [A]_i F - [C]_i.
    2. Online: [XW]_i = M (d_i F - [B]_i) - ([A]_i F - [C]_i), d_0 = 1, d_1 = 0.
    No round beyond the opening of X; exact. B is reused with a fresh A in every inference, so nothing but the
    uniform F and M is ever seen. (Beaver 1991; a fixed operand as in SecureML section 4.1.)
    """

    rows: int
    inner: int
    columns: int
    bits: int

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        if x[0].device.type != "cpu":
            y = float_product(signed(x[0], self.bits), signed(x[1], self.bits), self.bits)
            return (signed(y, self.bits),)
        w = x[1] if isinstance(x[1], RingMatrix) else RingMatrix(cast(x[1], self.bits), self.bits)
        return (signed(w.plain_product(signed(x[0], self.bits)), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] @ x[1],)

    def dealt(self) -> Types:
        return {"C": Shared((self.rows, self.columns), self.bits)}

    def correlate(self, *masks: Any) -> Correlations:
        return {"C": masks[1].product(cast(masks[0], self.bits))}

    def prepare(self, p: Party, *masks: Any) -> Correlations:
        weight: WeightShare = masks[1]
        k = super().prepare(p)
        return {"AF - C": weight.masked.product(cast(masks[0], self.bits)) - k["C"]}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        weight: WeightShare = x[1]
        y = weight.share.product(cast(x[0].value, self.bits)) - k["AF - C"]  # 2
        return (y.to(carrier(self.bits)),)


@register
@dataclass(frozen=True)
class Matmul(Op):
    """Opened X = M - A [..., m, k] times opened Y = N - B [..., k, n]: MN - M [B] - [A] N + [AB].

    No round beyond the openings; exact. (Beaver triple for matrices, SecureML section 4.1.)
    """

    left: Shape
    right: Shape
    bits: int

    @property
    def shape(self) -> Shape:
        return (*broadcast(self.left[:-2], self.right[:-2]), self.left[-2], self.right[-1])

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(batched_product(x[0], x[1], self.bits), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        return (x[0] @ x[1],)

    def dealt(self) -> Types:
        return {"AB": Shared(self.shape, self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        return {"AB": batched_product(masks[0], masks[1], self.bits)}

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m, n = x
        b = cast(n.mask, self.bits)
        if p.party == 0:
            b = b - cast(n.value, self.bits)
        y = k["AB"] - batched_product(m.value, b, self.bits) - batched_product(m.mask, n.value, self.bits)
        return (y,)

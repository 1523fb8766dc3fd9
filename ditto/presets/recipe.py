"""The style of the published systems: one or two fixed-point types, their operations on full rings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.errors import UsageError
from ditto.functions.fit import Fits
from ditto.functions.fixed import FixedPoint, convert, multiply, truncate_to
from ditto.functions.gelu_published import quad_gelu
from ditto.functions.layernorm_published import recipe_layernorm
from ditto.functions.linear import fraction_bits, linear
from ditto.functions.relu import relu
from ditto.functions.smooth import Zone
from ditto.functions.softmax_published import exact_softmax, quad_softmax
from ditto.functions.tanh import tanh
from ditto.ops import CausalMask, Matmul
from ditto.presets.choices import Choices
from ditto.presets.style import (
    ENCODER,
    AttentionBounds,
    Heads,
    Norm,
    Normed,
    Projection,
    Scores,
    Stage,
    Stream,
    masked,
    merge_heads,
    split_heads,
)
from ditto.ring.fixedpoint import encode

TABLE_RING = 24
TANH = FixedPoint(24, 12)  # what the harmonics of tanh read, whatever the recipe
BELOW = 20.0  # masked scores lie at least this much below any other, where exp is clipped to 0

Gelu = Callable[[Builder, Wire, FixedPoint], Wire]
Inverse = Callable[[Builder, Wire, float, float, FixedPoint], Wire]  # of v in [lo, hi], in a type


def padding_score(most: float) -> float:
    """What takes scores within +-most below any of them."""
    return -(2 * most + BELOW)


@dataclass(frozen=True)
class Recipe:
    """Types of the linear layers, of GELU, and of softmax's exponential and LayerNorm; the operations.

    `squares` replaces softmax by 2Quad, which has no causal form. Between operations a wire may be narrower than its
    type by what a truncation cut; it is extended again where the next product needs it (`ditto.functions.fixed`).
    """

    linear_type: FixedPoint
    precise: FixedPoint
    gelu_type: FixedPoint
    gelu: Gelu
    reciprocal: Inverse
    rsqrt: Inverse
    squares: bool = False
    centred = False
    folded = False
    repeats = False
    narrows = False
    open = False

    @property
    def quad(self) -> bool:
        return self.gelu is quad_gelu

    def chosen(self, choices: Choices) -> Recipe:
        """Itself: a publication decides everything."""
        return self

    @property
    def _narrow(self) -> int:
        """The ring that truncation leaves of the linear layers' type."""
        return self.linear_type.ring - self.linear_type.frac

    def table(self, bound: float, stream: Stream | None = None) -> FixedPoint:
        """LayerNorm reads them, so they have its fraction bits, on the smallest ring that holds their sum."""
        return FixedPoint(TABLE_RING, fraction_bits(bound, TABLE_RING, self.precise.frac))

    def enter(self, b: Builder, x: Wire) -> Wire:
        """In the linear layers' type, as narrow as a projection leaves it."""
        frac = self.linear_type.frac
        if x.frac > frac:
            x = truncate_to(b, x, frac)
        (opened,) = b.open(x)
        x = b.extend(opened, self._narrow)
        return b.affine(x, 1, 0, frac) if x.frac < frac else x

    def project_embeddings(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Normed:
        y = convert(b, self.linear(b, x, name, columns, bound), self.linear_type)
        return Normed(y, y)

    def masks(self, b: Builder, scores: list[Scores], batch: int, n: int) -> list[Wire]:
        """Added to the scores; for 2Quad, ones for what counts in the sum and zeros for padding."""
        if self.squares:
            return [b.input("keep", self.linear_type.ring, 0, (batch, 1, n, 1), 1.0)] * len(scores)
        bound = -padding_score(max(layer.size for layer in scores))
        return [b.input("mask", self._narrow, self.linear_type.frac, (batch, 1, 1, n), bound)] * len(scores)

    def encode_masks(self, scores: list[Scores], padding: Tensor) -> dict[str, Tensor]:
        if self.squares:
            return {"keep": encode(1 - padding[:, None, :, None], self.linear_type.ring, 0)}
        added = padding[:, None, None, :] * padding_score(max(layer.size for layer in scores))
        return {"mask": encode(added, self._narrow, self.linear_type.frac)}

    def bias(self, scores: Scores) -> FixedPoint:
        return FixedPoint(self._narrow, self.linear_type.frac)

    def scales(self, scores: Scores, size: int) -> tuple[float, float]:
        return 1 / math.sqrt(size), 1.0

    def linear(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """Narrow: on the ring that the truncation leaves."""
        (opened,) = b.open(x)
        frac = self.linear_type.frac
        return truncate_to(b, linear(b, opened, name, columns, bound, frac), frac)

    def read(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        return self.linear(b, x, name, columns, bound)

    def norm(self, b: Builder, x: Wire, norm: Norm, mean: Wire | None = None) -> Normed:
        y = recipe_layernorm(
            b, x, norm.name, norm.variance, norm.epsilon, norm.bound, self.precise, self.linear_type,
            lambda b, v, lo, hi: self.rsqrt(b, v, lo, hi, self.precise),
        )  # fmt: skip
        return Normed(y, y)

    def norm_linear(
        self, b: Builder, x: Wire, norm: Norm, name: str, columns: int, bound: float, stage: Stage = ENCODER
    ) -> Wire:
        with b.label("layernorm"):
            z = self.norm(b, x, norm).out
        return self.linear(b, z, name, columns, bound)

    def heads(
        self, b: Builder, x: Wire, name: str, count: int, batch: int, bounds: AttentionBounds, stage: Stage, *,
        norm: Norm | None = None, mask: Wire | None = None,
    ) -> Heads:  # fmt: skip
        """One opening of the projection, one of what it extends to; 2Quad takes padding out of the values."""
        width, ring = x.shape[1], self.linear_type.ring
        if norm is None:
            qkv = self.linear(b, x, name, 3 * width, bounds.qkv)
        else:
            qkv = self.norm_linear(b, x, norm, name, 3 * width, bounds.qkv)
        keep = None
        if self.squares and mask is not None:
            qkv, keep = b.open(qkv, mask)
        else:
            (qkv,) = b.open(qkv)
        q, k, v = (split_heads(b, qkv, part, count, batch) for part in range(3))
        v = b.extend(v, ring) if keep is None else multiply(b, v, keep, ring)
        q, k, v = b.open(b.extend(q, ring), b.extend(k, ring), v)
        return Heads(q, k, v, keep)

    def attend(
        self, b: Builder, heads: Heads, bounds: AttentionBounds, residual: Wire, stage: Stage, *,
        mask: Wire | None = None, bias: Wire | None = None,
    ) -> Wire:  # fmt: skip
        q, k, v, keep = heads[:4]
        if self.squares and (stage.causal or keep is None):
            raise UsageError("this preset's softmax has no causal form; take another for text generation")
        with b.label("scores"):
            s = truncate_to(b, self._matmul(b, q, k, bounds.scores.size), self.linear_type.frac)
        with b.label("softmax"):
            if stage.causal and q.shape[2] > 1:
                future = padding_score(bounds.scores.size)
                op = CausalMask(q.shape[2], s.ring, round(math.ldexp(future, s.frac)))
                (s,) = b.emit(op, [s], [(s.ring, s.frac, s.shape, s.bound - future)])
            for added in (bias, None if self.squares else mask):
                s = s if added is None else masked(b, s, added)
            p = self._softmax(b, s) if keep is None else self._quad_softmax(b, s, keep)
        with b.label("context"):
            (p,) = b.open(p)
            return merge_heads(b, convert(b, self._matmul(b, p, v, bounds.context), self.linear_type))

    def _softmax(self, b: Builder, s: Wire) -> Wire:
        return exact_softmax(
            b, s, self.precise, self.linear_type, lambda b, w, lo, hi: self.reciprocal(b, w, lo, hi, self.precise)
        )

    def _quad_softmax(self, b: Builder, s: Wire, keep: Wire) -> Wire:
        return quad_softmax(b, s, keep, self.precise, lambda b, w, hi: self.reciprocal(b, w, 0.0, hi, self.precise))

    def _matmul(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        op = Matmul(x.shape, y.shape, self.linear_type.ring)
        return b.emit(op, [x, y], [(op.bits, x.frac + y.frac, op.shape, bound)])[0]

    def halves(self, function: str, stage: Stage) -> bool:
        return False

    def half(self, first: Projection, second: Tensor, bounds: tuple[float, float], residual: int) -> Projection:
        raise UsageError("this preset computes GELU as a whole")

    def feed_in(
        self, b: Builder, x: Wire, name: str, columns: tuple[int, int], bounds: tuple[float, float], function: str,
        residual: Wire, stage: Stage,
    ) -> tuple[Wire, Wire | None]:  # fmt: skip
        return self.read(b, x, f"{name}.ffn1", columns[0], bounds[0]), None

    def zones(self, function: str, neurons: Sequence[tuple[int, float]], fits: Fits) -> list[Zone]:
        """None: its GELU is the publication's."""
        return []

    def activation(
        self, b: Builder, function: str, h: Wire, bound: float, residual: Wire | None, fits: Fits, stage: Stage,
        zones: Sequence[Zone] = (),
    ) -> Wire:  # fmt: skip
        """Whatever GELU the model was trained with, the recipe's; tanh on few rows, for which no publication names a
        function, by harmonics."""
        if function == "tanh":
            if h.frac < TANH.frac:
                h = b.affine(h, 1, 0, TANH.frac)
            return convert(b, tanh(b, truncate_to(b, h, TANH.frac, TANH.ring), bound, fits), self.linear_type)
        if function == "relu":
            return convert(b, relu(b, h), self.linear_type)
        fxp = self.gelu_type
        if h.frac < fxp.frac:
            h = convert(b, h, fxp)
        h = truncate_to(b, h, fxp.frac, fxp.ring - fxp.frac)
        return convert(b, self.gelu(b, h, fxp), self.linear_type)

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        return b.add(x, y, bound=bound)

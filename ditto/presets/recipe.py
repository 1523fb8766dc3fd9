"""The style of the published systems: one or two fixed-point types, their operations on full rings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.functions import linear, tanh
from ditto.functions.fixed import FixedPoint, convert, multiply, truncate_to
from ditto.functions.layernorm_published import recipe_layernorm
from ditto.functions.linear import fraction_bits
from ditto.functions.softmax_published import exact_softmax, quad_softmax
from ditto.ops import Matmul
from ditto.presets.style import Spec
from ditto.ring.fixedpoint import encode

EMBEDDING_RING = 24

Gelu = Callable[[Builder, Wire, FixedPoint], Wire]
Inverse = Callable[[Builder, Wire, float, float, FixedPoint], Wire]  # of v in [lo, hi], in a type


@dataclass(frozen=True)
class Recipe:
    """Types of the linear layers, of GELU, and of softmax's exponential and LayerNorm; the operations.

    `squares` replaces softmax by 2Quad. Between operations a wire may be narrower than its type by what a truncation
    cut; it is extended again where the next product needs it (`ditto.functions.fixed`).
    """

    linear: FixedPoint
    precise: FixedPoint
    gelu_type: FixedPoint
    activation: Gelu
    reciprocal: Inverse
    rsqrt: Inverse
    squares: bool = False
    centred = False

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        """LayerNorm follows, so the tables have its fraction bits, on the smallest ring that holds their sum."""
        bound = spec["calibration"]["embeddings"]["bound"]
        return EMBEDDING_RING, fraction_bits(bound, EMBEDDING_RING, self.precise.frac)

    def masks(self, b: Builder, spec: Spec, batch: int, seq: int) -> list[Wire]:
        """Added to the scores; for 2Quad, ones for what counts in the sum and zeros for padding."""
        count = spec["config"]["num_hidden_layers"]
        if self.squares:
            return [b.input("keep", self.linear.ring, 0, (batch, 1, seq, 1), 1.0)] * count
        ring, frac = self.linear.ring - self.linear.frac, self.linear.frac
        return [b.input("mask", ring, frac, (batch, 1, 1, seq), -_mask(spec))] * count

    def encode_masks(self, spec: Spec, padding: Tensor) -> dict[str, Tensor]:
        if self.squares:
            return {"keep": encode(1 - padding[:, None, :, None], self.linear.ring, 0)}
        ring, frac = self.linear.ring - self.linear.frac, self.linear.frac
        return {"mask": encode(padding[:, None, None, :] * _mask(spec), ring, frac)}

    def attention(
        self, b: Builder, x: Wire, mask: Wire, ranges: Spec, name: str, heads: int, batch: int, seq: int
    ) -> Wire:
        width, ring = x.shape[1], self.linear.ring
        b.label("qkv")
        qkv = self.project(b, x, f"{name}.qkv", 3 * width, ranges["qkv"])
        qkv, mask = b.open(qkv, mask) if self.squares else (*b.open(qkv), mask)

        def part(i: int, dims: tuple[int, ...]) -> Wire:
            one = b.view(qkv, slices=((1, i * width, (i + 1) * width),), shape=(batch, seq, heads, width // heads))
            return b.view(one, dims=dims)

        b.label("scores")
        v = part(2, (0, 2, 1, 3))
        v = multiply(b, v, mask, ring) if self.squares else b.extend(v, ring)
        q, k, v = b.open(b.extend(part(0, (0, 2, 1, 3)), ring), b.extend(part(1, (0, 2, 3, 1)), ring), v)
        s = truncate_to(b, self.matmul(b, q, k, ranges["scores"]), self.linear.frac)
        b.label("softmax")
        if self.squares:
            p = quad_softmax(b, s, mask, self.precise, lambda b, w, hi: self.reciprocal(b, w, 0.0, hi, self.precise))
        else:
            p = self.softmax(b, b.add(s, mask))
        return self.context(b, p, v, ranges["context"])

    def softmax(self, b: Builder, s: Wire) -> Wire:
        return exact_softmax(
            b, s, self.precise, self.linear, lambda b, w, lo, hi: self.reciprocal(b, w, lo, hi, self.precise)
        )

    def context(self, b: Builder, p: Wire, v: Wire, bound: float) -> Wire:
        """Probabilities [B, heads, n, N] times opened values [B, heads, N, d], as [B n, H]."""
        b.label("context")
        (p,) = b.open(p)
        batch, heads, n, d = *p.shape[:3], v.shape[3]
        context = convert(b, self.matmul(b, p, v, bound), self.linear)
        return b.view(b.view(context, dims=(0, 2, 1, 3)), shape=(batch * n, heads * d))

    def matmul(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        op = Matmul(x.shape, y.shape, self.linear.ring)
        return b.emit(op, [x, y], [(self.linear.ring, x.frac + y.frac, op.shape, bound)])[0]

    def project(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """Narrow: on the ring that the truncation leaves."""
        (opened,) = b.open(x)
        return truncate_to(b, linear(b, opened, name, columns, bound, self.linear.frac), self.linear.frac)

    def gelu(self, b: Builder, h: Wire, bound: float) -> Wire:
        b.label("gelu")
        fxp = self.gelu_type
        if h.frac < fxp.frac:
            h = convert(b, h, fxp)
        h = truncate_to(b, h, fxp.frac, fxp.ring - fxp.frac)
        y = convert(b, self.activation(b, h, fxp), self.linear)
        b.label("ffn out")
        return y

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        return b.add(x, y, bound=bound)

    def norm(self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float) -> tuple[Wire, Wire]:
        fxp = self.precise
        limits = tuple(ranges["var"])
        y = recipe_layernorm(
            b, x, name, limits, eps, ranges["out"], fxp, self.linear,
            lambda b, v, lo, hi: self.rsqrt(b, v, lo, hi, fxp),
        )  # fmt: skip
        return y, y

    def tanh(self, b: Builder, y: Wire, bound: float) -> Wire:
        """The pooler's, on one row: the publications name none, so all presets use harmonics."""
        if y.frac < 12:
            y = b.affine(y, 1, 0, 12)
        return convert(b, tanh(b, truncate_to(b, y, 12, 24), bound), self.linear)


def padding_score(most: float) -> float:
    """Added to scores within +-most, it takes them at least 20 below any of them, where exp is clipped to 0."""
    return -(2 * most + 20)


def _mask(spec: Spec) -> float:
    return padding_score(max(layer["scores"] for layer in spec["calibration"]["layers"]))

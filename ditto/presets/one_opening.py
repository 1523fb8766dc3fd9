"""The style of `ditto`: narrow types by calibration, functions of one opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError, UsageError
from ditto.functions import ScoreType, gelu, layernorm, linear, softmax_numerator, tanh
from ditto.functions.fit import Fits
from ditto.functions.fixed import FixedPoint, minus, multiply
from ditto.functions.gelu import ROOM, gelu_zones, tanh_gelu
from ditto.functions.layernorm import RESIDUAL, RESULT, standardise
from ditto.functions.linear import fraction_bits
from ditto.functions.relu import relu
from ditto.functions.smooth import Zone
from ditto.functions.softmax import reciprocal_of_sum
from ditto.ops import Matmul
from ditto.presets.choices import DEFAULT, Choices
from ditto.presets.style import AttentionBounds, Heads, Norm, Normed, Stage, Stream, masked, merge_heads, split_heads
from ditto.ring.exact import ceil_log2, floor_log2
from ditto.ring.fixedpoint import encode

HIDDEN = RESULT  # of a LayerNorm: what linear layers read
TABLE = FixedPoint(16, 12)  # embeddings; fewer fraction bits where the values need the room
NARROW = 16  # ring bits of a wire on its way to an extension
SCORES = 16  # of scores, as steps on their circle
QUERIES = 32  # of opened queries and keys, whose product has 2 f fraction bits
FOLDED, FOLDED_QKV = 32, 48  # of what a LayerNorm gives to its projection; 48 spare the heads an extension
CUT = 8  # bits of the ring that the truncation before an addition to the residual stream takes
STREAMS = (FixedPoint(24, 12), FixedPoint(32, 16))  # of a stream: the largest number of fraction bits in each ring
RESOLVED = 6  # bits below the least deviation that a stream's fraction resolves
TANH_FRAC = 12


@dataclass(frozen=True)
class Attention:
    """Types of the attention after its scores.

    `values`: ring of values and context; `digits`: of the exponentials; `inverse`: fraction bits of 1 / sum, at most;
    `product`: ring of the context times 1 / sum (0: what its result needs); `index_bits`: of the tables for 1 / sum
    that spare rounds (0: fewer bytes instead).
    """

    values: int
    digits: int
    inverse: int
    product: int = 0
    index_bits: int = 0

    @classmethod
    def of(cls, stage: Stage) -> Attention:
        if not stage.causal:
            return cls(values=40, digits=16, inverse=64, product=64)
        causal = cls(values=36, digits=12, inverse=16, index_bits=9 if stage.later else 0)
        return replace(causal, digits=10, index_bits=8) if stage.narrow else causal

    def chosen(self, choices: Choices) -> Attention:
        digits, bits = choices.exponential, choices.reciprocal
        return replace(self, digits=digits or self.digits, index_bits=self.index_bits if bits is None else bits)


@dataclass(frozen=True)
class OneOpening:
    """Scores on a circle of 2^16 steps, activations on (32, 8), residual sums on (24, 12); see docs/protocol.md.

    What enters a LayerNorm is free of its mean without any work under MPC: the tables and weights that lead there are
    centred when they are encoded, and a residual comes centred from the LayerNorm before. Where only a projection
    reads a LayerNorm, gamma and beta are folded into it.
    """

    centred = True
    folded = True
    quad = False
    narrows = True
    open = True
    choices: Choices = DEFAULT

    def chosen(self, choices: Choices) -> OneOpening:
        return replace(self, choices=choices)

    def table(self, bound: float, stream: Stream | None = None) -> FixedPoint:
        """A stream's: the smallest ring whose fraction bits resolve the least deviation to 2^-RESOLVED."""
        if stream is None:
            return FixedPoint(TABLE.ring, fraction_bits(bound, TABLE.ring, TABLE.frac))
        size = max(ceil_log2(stream.bound), 0)
        need = RESOLVED - (floor_log2(stream.least_variance) // 2)
        for widest in STREAMS:
            frac = min(widest.frac, widest.ring - 2 - size)
            if frac >= need:
                return FixedPoint(widest.ring, frac)
        raise RangeError(f"the residual stream needs {need} fraction bits and {size} for its size: no type has them")

    def enter(self, b: Builder, x: Wire) -> Wire:
        return x

    def project_embeddings(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Normed:
        y = self.linear(b, x, name, columns + 1, bound)
        mean = b.view(y, slices=((1, columns, columns + 1),))
        y = b.view(y, slices=((1, 0, columns),))
        cut = y.frac - RESIDUAL.frac
        residual = b.add(b.truncate(y, cut, RESIDUAL.ring), minus(b, b.truncate(mean, cut, RESIDUAL.ring)))
        (narrow,) = b.open(b.truncate(y, y.frac - fraction_bits(bound, NARROW, HIDDEN.frac), NARROW))
        return Normed(b.extend(narrow, HIDDEN.ring), residual)

    def masks(self, b: Builder, scores: list[float], batch: int, n: int) -> list[Wire]:
        """The same padding on the circle of each score type in use."""
        circles = [ScoreType.of(bound) for bound in scores]
        wires = {c: b.input(f"mask.{c.frac}", SCORES, c.frac, (batch, 1, 1, n), 0.0) for c in dict.fromkeys(circles)}
        return [wires[c] for c in circles]

    def encode_masks(self, scores: list[float], padding: Tensor) -> dict[str, Tensor]:
        """Masked scores go round the circle: the representative in [-T/2, T/2)."""
        out = {}
        for circle in dict.fromkeys(ScoreType.of(bound) for bound in scores):
            period = float(1 << circle.log_range)
            on_circle = torch.remainder(padding.double() * circle.mask + period / 2, period) - period / 2
            out[f"mask.{circle.frac}"] = encode(on_circle[:, None, None, :], SCORES, circle.frac)
        return out

    def bias(self, scores: float) -> FixedPoint:
        return FixedPoint(SCORES, ScoreType.of(scores).frac)

    def linear(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        (opened,) = b.open(x)
        return linear(b, opened, name, columns, bound)

    def norm(self, b: Builder, x: Wire, norm: Norm) -> Normed:
        return Normed(
            *layernorm(b, x, norm.name, norm.variance, norm.epsilon, norm.bound, norm.residual, self.choices.deviation)
        )

    def norm_linear(self, b: Builder, x: Wire, norm: Norm, name: str, columns: int, bound: float) -> Wire:
        with b.label("layernorm"):
            z = standardise(b, x, norm.variance, norm.epsilon, FOLDED, self.choices.deviation)
        return self.linear(b, z, name, columns, bound)

    def heads(
        self, b: Builder, x: Wire, name: str, count: int, batch: int, bound: float, stage: Stage, *,
        norm: Norm | None = None, mask: Wire | None = None,
    ) -> Heads:  # fmt: skip
        """After a folded LayerNorm the projection's ring lets a truncation give what the products need; else its
        result is opened on 16 bits, once, and extended to each of them."""
        width = x.shape[1]
        frac = fraction_bits(bound, NARROW, HIDDEN.frac)
        rings = QUERIES, QUERIES, Attention.of(stage).values
        if norm is not None:
            with b.label("layernorm"):
                x = standardise(b, x, norm.variance, norm.epsilon, FOLDED_QKV, self.choices.deviation)
        qkv = self.linear(b, x, name, 3 * width, bound)
        if norm is not None:
            parts = [split_heads(b, qkv, i, count, batch) for i in range(3)]
            parts = [b.truncate(part, part.frac - frac, ring) for part, ring in zip(parts, rings, strict=True)]
        else:
            (qkv,) = b.open(b.truncate(qkv, qkv.frac - frac, NARROW))
            parts = [b.extend(split_heads(b, qkv, i, count, batch), ring) for i, ring in enumerate(rings)]
        q, k, v = b.open(*parts)
        return Heads(q, k, v)

    def attend(
        self, b: Builder, heads: Heads, bounds: AttentionBounds, residual: Wire, stage: Stage, *,
        mask: Wire | None = None, bias: Wire | None = None,
    ) -> Wire:  # fmt: skip
        """1. Scores, cut onto their circle; mask and bias.  2. Exponentials, and 1 / sum by row.
        3. Exponentials times values; both opened; their product.  All types by `Attention`."""
        q, k, v, _ = heads
        types, circle = Attention.of(stage).chosen(self.choices), ScoreType.of(bounds.scores)
        with b.label("scores"):  # 1
            op = Matmul(q.shape, k.shape, QUERIES)
            (s,) = b.emit(op, [q, k], [(QUERIES, q.frac + k.frac, op.shape, circle.bound)])
            if s.frac < circle.frac:
                s = b.affine(s, 1, 0, circle.frac)
            s = b.truncate(s, s.frac - circle.frac, SCORES)
            for added in (bias, mask):
                s = s if added is None else masked(b, s, added)
        with b.label("softmax"):  # 2
            causal = stage.causal and q.shape[2] > 1
            e, total, limits = softmax_numerator(b, s, circle, causal=causal, digits=types.digits)
            most = limits[1] * bounds.qkv
            # fraction bits of E that the context has room for: CUT of them are truncated, then it extends
            room = types.values - 2 - CUT - ceil_log2(most)
            if room < e.frac:
                e = b.truncate(e, e.frac - room, e.ring - e.frac + room)
            inverse, (e_open,) = reciprocal_of_sum(b, total, limits, (e,), types.index_bits > 0, types.index_bits)
            if inverse.frac > types.inverse:
                cut = inverse.frac - types.inverse
                inverse = b.truncate(inverse, cut, inverse.ring - cut)
        with b.label("context"):  # 3
            op = Matmul(e_open.shape, v.shape, types.values)
            (context,) = b.emit(op, [e_open, v], [(types.values, e_open.frac + v.frac, op.shape, most)])
            context, inverse = b.open(b.truncate(context, CUT, types.values - CUT), inverse)
            ring, cut = residual.ring + CUT, context.frac + inverse.frac - HIDDEN.frac
            context = multiply(b, context, inverse, types.product or ring + cut, bound=bounds.context)
            return merge_heads(b, b.truncate(context, cut, ring))

    def zones(self, function: str, neurons: Sequence[tuple[int, float]], fits: Fits) -> list[Zone]:
        return [] if self.choices.activation == "as one" else gelu_zones(function, neurons, fits)

    def activation(
        self, b: Builder, function: str, h: Wire, bound: float, residual: Wire | None, fits: Fits, stage: Stage,
        zones: Sequence[Zone] = (),
    ) -> Wire:  # fmt: skip
        """On (24, 12) whatever the function, its result cut to 16 bits, which an opening extends; columns too wide for
        that, if any, are cut to what their fraction bits leave of 24."""
        x = b.truncate(h, h.ring - RESIDUAL.ring)
        match function:
            case "gelu":
                cut = _cut_zones(b, gelu(b, x, bound, fits, zones), zones)
            case "tanh gelu":
                cut = [tanh_gelu(b, x, bound, fits, NARROW if stage.narrow else RESIDUAL.ring, zones)]
            case "tanh":
                cut = [_cut(b, tanh(b, x, bound, fits), TANH_FRAC)]
            case "relu":
                cut = [_cut(b, relu(b, x), HIDDEN.frac)]
            case _:
                raise UsageError(f"preset ditto has no {function}: take one that was made for it")
        wide = [b.extend(y, HIDDEN.ring if residual is None else residual.ring + CUT) for y in b.open(*cut)]
        return b.join(*wide, dim=1) if len(wide) > 1 else wide[0]

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """On the residual's type."""
        cut = y.frac - x.frac
        return b.add(x, b.truncate(y, cut, min(y.ring - cut, x.ring)), bound=bound)


def _cut(b: Builder, y: Wire, most: int) -> Wire:
    """On 16 bits, with `most` fraction bits or what its bound leaves."""
    return b.truncate(y, y.frac - fraction_bits(y.bound, NARROW, most), NARROW)


def _cut_zones(b: Builder, y: Wire, zones: Sequence[Zone]) -> list[Wire]:
    """[rows, columns] with the fraction bits of what linear layers read: its first columns on 16 bits, and the rest,
    from the first zone on that is too wide for those, on what the fraction bits leave."""
    fitting, columns, bound = True, 0, 0.0
    for zone in zones:
        limit = zone.bound + ROOM
        fitting = fitting and fraction_bits(limit, NARROW, HIDDEN.frac) == HIDDEN.frac
        if fitting:
            columns, bound = columns + zone.columns, max(bound, limit)
    if columns in (0, y.shape[1]):
        return [_cut(b, y, HIDDEN.frac)]
    first = b.retype(b.view(y, slices=((1, 0, columns),)), bound=bound)
    rest = b.view(y, slices=((1, columns, y.shape[1]),))
    return [_cut(b, first, HIDDEN.frac), b.truncate(rest, y.frac - HIDDEN.frac, y.ring - y.frac + HIDDEN.frac)]

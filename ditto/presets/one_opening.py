"""The style of `ditto`: narrow types by calibration, functions of one opening."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError, UsageError
from ditto.functions.fit import Fits
from ditto.functions.fixed import FixedPoint, minus, multiply, truncate_to
from ditto.functions.gelu import FITTED, TYPES, GeluType, gelu, gelu_even, gelu_zones
from ditto.functions.layernorm import (
    BALANCED,
    BY_TREE,
    FEWEST_BYTES,
    FEWEST_ROUNDS,
    RESIDUAL,
    RESOLVED,
    RESULT,
    SPARE,
    layernorm,
    layernorm_residual,
    standardise,
    standardised_linear,
)
from ditto.functions.linear import SMALLEST, WEIGHT_FRAC, fraction_bits, linear
from ditto.functions.relu import relu
from ditto.functions.smooth import Zone
from ditto.functions.softmax import (
    ScoreType,
    reciprocal_of_sum,
    softmax_numerator,
)
from ditto.functions.tanh import tanh
from ditto.ops import Matmul
from ditto.presets.attention import CUT, Attention, attention_types, divided, most_of, score_type, whole_bits
from ditto.presets.choices import DEFAULT, Choices
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
from ditto.ring.exact import ceil_log2, floor_log2
from ditto.ring.fixedpoint import encode

HIDDEN = RESULT  # of a LayerNorm: what linear layers read
TABLE = FixedPoint(16, 12)  # embeddings; fewer fraction bits where the values need the room
NARROW = 16  # ring bits of a wire on its way to an extension
QUERIES = 24  # of opened queries and keys: a score needs only its value on the circle
ENCODED = FixedPoint(20, 8)  # of an encoder's, which are scaled to it: what truncation leaves of HIDDEN's projections
KEEP = 16  # of the vector of real tokens: what embeddings, their positions and scores are on
FOLDED, FOLDED_QKV = 32, 48  # of what a LayerNorm gives to its projection; 48 spare the heads an extension
STREAMS = (FixedPoint(24, 12), FixedPoint(32, 16))  # of a stream: the largest number of fraction bits in each ring
TANH_FRAC = 12
HALF_SPARE = 2  # fraction bits of the matrix of x/2 beyond the second one's, where what it reads has the ring for them
SINGLE = {"large": FEWEST_ROUNDS, "medium": BALANCED, "small": FEWEST_BYTES, "tree": BY_TREE}


def _excess(circle: ScoreType) -> int:
    """log2 of what an encoder's scores are multiplied with, so that ENCODED's ring ends where their circle does."""
    return ENCODED.ring - 2 * ENCODED.frac - circle.log_range


def gelu_type(stage: Stage, result: int, own: GeluType) -> GeluType:
    """On few bits, which an opening extends; of few rows at once on the `result` bits that the next product takes."""
    kind = TYPES["coarse"] if stage.narrow else own
    if not stage.later:
        return kind
    return straight_type(result, kind)


def straight_type(result: int, own: GeluType) -> GeluType:
    """The even part on the `result` bits that the next product takes."""
    return replace(own, ring=result + own.ring - own.result, result=result)


@dataclass(frozen=True)
class OneOpening:
    """Scores on a circle of 2^16 steps at most, activations on (32, 8), residual sums by their bound, on (24, 12) at
    most; see docs/protocol.md.

    What enters a LayerNorm is free of its mean without any work under MPC: the tables and weights that lead there are
    centred when they are encoded, and a residual comes centred from the LayerNorm before. Where only a projection
    reads a LayerNorm, gamma and beta are folded into it.
    """

    centred = True
    folded = True
    repeats = True
    quad = False
    narrows = True
    open = True
    choices: Choices = DEFAULT

    def chosen(self, choices: Choices) -> OneOpening:
        return replace(self, choices=choices)

    def attention(self, bounds: AttentionBounds, stage: Stage, keys: int) -> tuple[Attention, ScoreType]:
        """Types of an attention to so many keys, and of its scores: without a maximum where that has room."""
        return attention_types(self.choices, bounds, stage, keys)

    @property
    def gelu_kind(self) -> GeluType:
        return TYPES[self.choices.gelu or "precise"]

    @property
    def single(self) -> int | None:
        """The most index bits of one table for a LayerNorm's 1 / sqrt(v), or BY_TREE."""
        return SINGLE[self.choices.deviation or "tree"]

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
        y = self.read(b, x, name, columns + 1, bound)
        mean = b.view(y, slices=((1, columns, columns + 1),))
        y = b.view(y, slices=((1, 0, columns),))
        cut = y.frac - RESIDUAL.frac
        residual = b.add(b.truncate(y, cut, RESIDUAL.ring), minus(b, b.truncate(mean, cut, RESIDUAL.ring)))
        (narrow,) = b.open(b.truncate(y, y.frac - fraction_bits(bound, NARROW, HIDDEN.frac), NARROW))
        (out,) = b.open(b.extend(narrow, HIDDEN.ring))
        return Normed(out, residual)

    def masks(self, b: Builder, scores: list[Scores], batch: int, n: int) -> list[Wire]:
        """One for all layers: 1 for a token, 0 for padding; masks are linear in it."""
        return [b.input("keep", KEEP, 0, (batch, 1, 1, n), 1.0)] * len(scores)

    def encode_masks(self, scores: list[Scores], padding: Tensor) -> dict[str, Tensor]:
        return {"keep": encode(1 - padding[:, None, None, :], KEEP, 0)}

    def bias(self, scores: Scores) -> FixedPoint:
        circle = score_type(scores, ENCODER)
        return FixedPoint(circle.ring, circle.frac)

    def scales(self, scores: Scores, size: int) -> tuple[float, float]:
        """Alike, such that on ENCODED's ring a score goes once round where its circle does."""
        scale = math.sqrt(math.ldexp(1 / math.sqrt(size), _excess(score_type(scores, ENCODER))))
        return scale, scale

    def linear(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        (opened,) = b.open(x)
        return linear(b, opened, name, columns, bound)

    def read(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """`Normed.out` is open."""
        return linear(b, x, name, columns, bound)

    def norm(self, b: Builder, x: Wire, norm: Norm, mean: Wire | None = None) -> Normed:
        """The standardised rows are opened once, for the projections that read them and for the residual."""
        (z,) = b.open(standardise(b, x, norm.variance, norm.epsilon, HIDDEN.ring, self.single, mean))
        if norm.whole:
            result = layernorm(b, z, norm.name, norm.bound)
            return Normed(result, result)
        if not norm.residual:
            return Normed(z, z)
        return Normed(z, *layernorm_residual(b, z, norm.name, norm.bound, norm.residual))

    def norm_linear(
        self, b: Builder, x: Wire, norm: Norm, name: str, columns: int, bound: float, stage: Stage = ENCODER
    ) -> Wire:
        return self._normed(b, x, norm, FOLDED, name, columns, bound, stage)

    def _normed(
        self, b: Builder, x: Wire, norm: Norm, ring: int, name: str, columns: int, bound: float, stage: Stage
    ) -> Wire:
        """A LayerNorm of a stream and the projection on `ring` that it is folded into: of few rows, both at once."""
        limits, epsilon, single = norm.variance, norm.epsilon, self.single
        with b.label("layernorm"):
            if stage.later:
                y = standardised_linear(b, x, limits, epsilon, ring, single, name, columns, bound)
                if y is not None:
                    return y
            z = standardise(b, x, limits, epsilon, ring, single)
        return self.linear(b, z, name, columns, bound)

    def heads(
        self, b: Builder, x: Wire, name: str, count: int, batch: int, bounds: AttentionBounds, stage: Stage, *,
        norm: Norm | None = None, mask: Wire | None = None,
    ) -> Heads:  # fmt: skip
        """1. Keys less the text's first: that changes all scores of a row alike, and makes its first one 0.
        2. After a folded LayerNorm the projection's ring lets a truncation give what the products need, but for
           values without a maximum where scores rise far: these are extended as in 3.
        3. An encoder's queries and keys are scaled to what its truncation leaves; values alone are opened on few bits
           and extended. What leaves its range does not wrap there, but is watched as if it did."""
        width = x.shape[1]
        root, fourth = self.scales(bounds.scores, 1)[0], math.sqrt(math.sqrt(width // count))
        bound = bounds.qkv * (1.0 if stage.causal else max(1.0, root * fourth))
        if norm is None:
            qkv = self.read(b, x, name, 3 * width, bound)
        else:
            qkv = self._normed(b, x, norm, FOLDED_QKV, name, 3 * width, bound, stage)
        q, k, v = (split_heads(b, qkv, i, count, batch) for i in range(3))
        zero = self._first(b, k, name, stage)
        k = b.add(k, minus(b, zero))  # 1
        v = b.retype(v, bound=bounds.qkv)
        ring = self.attention(bounds, stage, k.shape[3])[0].values
        if stage.causal:  # 2
            widest = score_type(bounds.scores, replace(stage, later=True))  # one type of keys for all stages
            digits = min(HIDDEN.frac, (QUERIES - widest.log_range) // 2)
            short = ring > v.ring - (v.frac - fraction_bits(v.bound, NARROW, HIDDEN.frac))
            values = _extended(v.bound, HIDDEN.frac).ring if short else ring
            types = (q, digits, QUERIES), (k, digits, QUERIES), (v, HIDDEN.frac, values)
            fracs = [fraction_bits(part.bound, NARROW, most) for part, most, _ in types]
            cut = [b.truncate(y, y.frac - f, bits) for (y, _, bits), f in zip(types, fracs, strict=True)]
            q, k, v = b.open(*cut)
            if short:
                (v,) = b.open(b.extend(v, ring))
            return Heads(q, k, v, first=zero)
        # 3
        own = _extended(v.bound, HIDDEN.frac)
        narrow = b.truncate(v, v.frac - own.frac, own.ring)
        cut = [b.truncate(y, y.frac - ENCODED.frac, ENCODED.ring, bound=0.0) for y in (q, k)]
        q, k, narrow = b.open(*cut, narrow)
        (v,) = b.open(b.extend(narrow, ring))
        reach = root * bounds.qkv
        for y, largest in ((q, reach * fourth), (k, 2 * reach / fourth)):  # less another
            b.watch_narrow(y, largest)
        return Heads(q, b.retype(k, frac=k.frac + _excess(score_type(bounds.scores, stage))), v)

    def _first(self, b: Builder, k: Wire, name: str, stage: Stage) -> Wire:
        """The first key of each text [B, heads, d, 1]: of these, or from an earlier stage."""
        if stage.later:
            return b.carry(f"{name}.first", k.ring, k.frac, (*k.shape[:3], 1), k.bound)
        return b.view(k, slices=((3, 0, 1),))

    def attend(
        self, b: Builder, heads: Heads, bounds: AttentionBounds, residual: Wire, stage: Stage, *,
        mask: Wire | None = None, bias: Wire | None = None,
    ) -> Wire:  # fmt: skip
        """1. Scores, cut onto their circle; bias and mask.
        2. Exponentials, and 1 / sum by row.
        3. Exponentials times values; both opened; their product.  All types by `Attention`."""
        q, k, v, *_ = heads
        types, circle = self.attention(bounds, stage, k.shape[3])
        with b.label("scores"):  # 1
            op = Matmul(q.shape, k.shape, q.ring)
            (s,) = b.emit(op, [q, k], [(q.ring, q.frac + k.frac, op.shape, 0.0)])
            if s.frac < circle.frac:
                s = b.affine(s, 1, 0, circle.frac)
            s = b.truncate(s, s.frac - circle.frac, circle.ring)
            if bias is not None:
                s = b.add(s, bias)
            if mask is not None:  # 0 for a token
                added = b.add(mask, ring=circle.ring, bound=0.0)
                added = b.affine(added, -circle.mask, circle.mask, circle.frac, bound=0.0)
                s = masked(b, s, added)
        with b.label("softmax"):  # 2
            causal = stage.causal and q.shape[2] > 1
            most = most_of(circle, k.shape[3], bounds)
            whole = whole_bits(most)
            dealt = types.exponential.holding(whole)  # E, cut below, must fill the values' ring
            e, total, limits = softmax_numerator(b, s, circle, causal, dealt, types.by_bits)
            # fraction bits of E that the context has room for: CUT of them are truncated, then it extends
            room = types.values - whole
            if room < e.frac:
                e = b.truncate(e, e.frac - room, e.ring - e.frac + room)
            if e.ring > types.values:  # the product reads no more
                e = b.add(e, ring=types.values)
            inverses, (e_open,) = reciprocal_of_sum(b, total, limits, (e,), circle.parts)
            ys = [truncate_to(b, part.y, min(part.y.frac, types.inverse)) for part in inverses]
        with b.label("context"):  # 3
            op = Matmul(e_open.shape, v.shape, types.values)
            (context,) = b.emit(op, [e_open, v], [(types.values, e_open.frac + v.frac, op.shape, most)])
            context, *ys = b.open(b.truncate(context, CUT, types.values - CUT), *ys)
            ring = residual.ring + CUT
            if len(ys) > 1:
                parts = [replace(part, y=y) for part, y in zip(inverses, ys, strict=True)]
                return merge_heads(b, divided(b, context, parts, bounds, ring))
            b.watch_high(context)
            cut = context.frac + ys[0].frac - HIDDEN.frac
            context = multiply(b, context, ys[0], types.product or ring + cut, bound=bounds.context)
            return merge_heads(b, b.truncate(context, cut, ring))

    def halves(self, function: str, stage: Stage) -> bool:
        return self.choices.product != "extended" and function in FITTED and not stage.causal

    def half(self, first: Projection, second: Tensor, bounds: tuple[float, float], residual: int) -> Projection:
        """Of the weights as they are encoded, so that what GELU makes 0 of x/2 and e(x) is 0 after the product, too."""
        (weight, bias), (inner, outer) = first, bounds
        weight = _rounded(weight, fraction_bits(inner, FOLDED - HIDDEN.frac, WEIGHT_FRAC))
        second = _rounded(second, self._second_frac(outer, residual + CUT)) / 2
        return weight @ second, bias @ second

    def feed_in(
        self, b: Builder, x: Wire, name: str, columns: tuple[int, int], bounds: tuple[float, float], function: str,
        residual: Wire, stage: Stage,
    ) -> tuple[Wire, Wire | None]:  # fmt: skip
        """x/2 W = z (V W / 2) for x = z V: of the opened z, so that x/2 is neither opened nor extended."""
        inner, hidden = columns
        if not self.halves(function, stage):
            return self.read(b, x, f"{name}.ffn1", inner, bounds[0]), None
        ring = residual.ring + CUT
        spare = min(HALF_SPARE, x.ring - ring)
        half = linear(b, x, f"{name}.half", hidden, bounds[1], self._second_frac(bounds[1], ring) + spare)
        half = b.truncate(half, spare, ring) if half.ring > ring else half
        return linear(b, x, f"{name}.ffn1", inner, bounds[0]), half

    def _second_frac(self, bound: float, ring: int) -> int:
        """Fraction bits of a feed-forward network's second matrix, for what `activation` gives it."""
        return fraction_bits(bound, ring - self.gelu_kind.frac, WEIGHT_FRAC)

    def zones(self, function: str, neurons: Sequence[tuple[int, float]], fits: Fits) -> list[Zone]:
        if self.choices.activation == "as one":
            return []
        return gelu_zones(function, neurons, fits, self.gelu_kind.frac)

    def activation(
        self, b: Builder, function: str, h: Wire, bound: float, residual: Wire | None, fits: Fits, stage: Stage,
        zones: Sequence[Zone] = (),
    ) -> Wire:  # fmt: skip
        """On (24, 12) whatever the function; its result on few bits, which an opening extends, or `gelu_type` wide."""
        x = b.truncate(h, h.ring - RESIDUAL.ring)
        ring = HIDDEN.ring if residual is None else residual.ring + CUT
        match function:
            case "gelu" | "tanh gelu":
                own = self.gelu_kind
                if residual is not None and self.halves(function, stage):  # a head has no second product
                    return gelu_even(b, function, x, bound, fits, straight_type(ring, own), zones, own.frac)
                narrow = gelu(b, function, x, bound, fits, gelu_type(stage, ring, own), zones, own.frac)
            case "tanh":
                narrow = [_cut(b, tanh(b, x, bound, fits), TANH_FRAC)]
            case "relu":
                narrow = [_cut(b, relu(b, x), HIDDEN.frac)]
            case _:
                raise UsageError(f"preset ditto has no {function}: take one that was made for it")
        if narrow[0].ring == ring:
            return narrow[0]
        wide = [b.extend(y, ring) for y in b.open(*narrow)]
        return b.join(*wide, dim=1) if len(wide) > 1 else wide[0]

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """On the residual's type."""
        cut = y.frac - x.frac
        return b.add(x, b.truncate(y, cut, min(y.ring - cut, x.ring)), bound=bound)


def _rounded(x: Tensor, frac: int) -> Tensor:
    """As encoded with so many fraction bits; its gradient is that of x."""
    scale = math.ldexp(1.0, frac)
    return x + ((x * scale + 0.5).floor() / scale - x).detach()


def _extended(bound: float, most: int) -> FixedPoint:
    """The smallest ring from which |x| <= bound with `most` fraction bits extends, and SPARE bits; NARROW at most, with
    fewer fraction bits where it takes that."""
    frac = fraction_bits(bound, NARROW, most)
    return FixedPoint(min(NARROW, frac + 2 + ceil_log2(max(bound, SMALLEST)) + SPARE), frac)


def _cut(b: Builder, y: Wire, most: int) -> Wire:
    """On 16 bits, with `most` fraction bits or what its bound leaves."""
    return b.truncate(y, y.frac - fraction_bits(y.bound, NARROW, most), NARROW)

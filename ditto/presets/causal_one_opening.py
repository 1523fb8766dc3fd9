"""The style of `ditto` for causal Transformers: few rounds a token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions import ScoreType, softmax_numerator
from ditto.functions.fixed import multiply
from ditto.functions.gelu import tanh_gelu
from ditto.functions.layernorm import standardise
from ditto.functions.linear import fraction_bits
from ditto.functions.softmax import reciprocal_of_sum
from ditto.ops import Matmul
from ditto.presets.causal import Effort, Heads
from ditto.presets.one_opening import HIDDEN_FRAC, Circle
from ditto.presets.style import Spec

STREAM_FRAC = 12
QKV_RING, VALUE_RING = 48, 36


@dataclass(frozen=True)
class Stream:
    """The residual stream's type. Projections that lead into it run on 8 ring bits more, which truncation cuts."""

    ring: int
    frac: int

    @classmethod
    def of(cls, spec: Spec) -> Stream:
        """The smallest ring whose fraction bits resolve the smallest deviation seen to 2^-6. Raises RangeError."""
        ranges = spec["calibration"]
        norms = [layer[n] for layer in ranges["layers"] for n in ("norm1", "norm2")] + [ranges["final"]]
        most = max(math.ceil(math.log2(max(norm["in"] for norm in norms))), 0)
        need = 6 - math.floor(math.log2(min(norm["var"][0] for norm in norms)) / 2)
        for ring, limit in ((24, STREAM_FRAC), (32, 16)):
            frac = min(limit, ring - 2 - most)
            if frac >= need:
                return cls(ring, frac)
        raise RangeError(f"the residual stream needs {need} fraction bits and {most} for its size: no type has them")


class CausalOneOpening(Circle):
    """Gamma and beta are folded into the projections; the residual stream is free of its mean throughout.

    A LayerNorm's result goes straight to the ring on which its projection can be cut to what the next opening needs,
    so that no extension is opened for its own sake: 20 rounds a block for a single token.
    """

    folded = True
    narrows = True

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        stream = Stream.of(spec)
        return stream.ring, stream.frac

    def stream(self, b: Builder, x: Wire, spec: Spec) -> Wire:
        return x

    def heads(
        self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float, heads: int, batch: int
    ) -> Heads:
        rows, width = x.shape
        b.label("layernorm")
        z = standardise(b, x, tuple(ranges["norm1"]["var"]), eps, QKV_RING)
        b.label("qkv")
        qkv = self.project(b, z, f"{name}.qkv", 3 * width, ranges["qkv"])
        frac = fraction_bits(ranges["qkv"], 16, HIDDEN_FRAC)

        def part(i: int, ring: int, dims: tuple[int, ...]) -> Wire:
            cut = ((1, i * width, (i + 1) * width),)
            one = b.view(qkv, cut, (batch, rows // batch, heads, width // heads), dims)
            return b.truncate(one, one.frac - frac, ring)

        q, k, v = b.open(part(0, 32, (0, 2, 1, 3)), part(1, 32, (0, 2, 3, 1)), part(2, VALUE_RING, (0, 2, 1, 3)))
        return q, k, v

    def attend(self, b: Builder, x: Wire, heads: Heads, mask: Wire | None, ranges: Spec, effort: Effort) -> Wire:
        q, k, v = heads
        circle = ScoreType.of(ranges["scores"])
        b.label("scores")
        op = Matmul(q.shape, k.shape, 32)
        (s,) = b.emit(op, [q, k], [(32, q.frac + k.frac, op.shape, circle.bound)])
        if s.frac < circle.frac:
            s = b.affine(s, 1, 0, circle.frac)
        s = b.truncate(s, s.frac - circle.frac, 16)
        if mask is not None:
            s = masked(b, s, mask)
        b.label("softmax")
        e, total, limits = softmax_numerator(b, s, circle, causal=q.shape[2] > 1, digits=10 if effort.narrow else 12)
        most = limits[1] * ranges["qkv"]
        room = VALUE_RING - 2 - 8 - math.ceil(math.log2(most))  # for fraction bits of E: the context then extends
        narrow = b.truncate(e, e.frac - room, e.ring - e.frac + room) if room < e.frac else e
        index_bits = 8 if effort.narrow else 9
        inverse, (e_open,) = reciprocal_of_sum(b, total, limits, (narrow,), effort.few, index_bits)
        if inverse.frac > 16:
            inverse = b.truncate(inverse, inverse.frac - 16, inverse.ring - inverse.frac + 16)
        b.label("context")
        op = Matmul(e_open.shape, v.shape, VALUE_RING)
        (context,) = b.emit(op, [e_open, v], [(VALUE_RING, e_open.frac + v.frac, op.shape, most)])
        context, inverse = b.open(b.truncate(context, 8, VALUE_RING - 8), inverse)
        cut = context.frac + inverse.frac - HIDDEN_FRAC
        context = multiply(b, context, inverse, x.ring + 8 + cut, bound=ranges["context"])
        context = b.truncate(context, cut, x.ring + 8)
        batch, count, n, d = q.shape
        return b.view(b.view(context, dims=(0, 2, 1, 3)), shape=(batch * n, count * d))

    def norm_project(
        self, b: Builder, x: Wire, norm: str, name: str, columns: int, ranges: Spec, bound: float, eps: float
    ) -> Wire:
        label = b.current
        b.label("layernorm")
        z = standardise(b, x, tuple(ranges["var"]), eps, 32)
        b.label(label)
        return self.project(b, z, name, columns, bound)

    def gelu(self, b: Builder, x: Wire, h: Wire, bound: float, effort: Effort) -> Wire:
        (narrow,) = b.open(tanh_gelu(b, b.truncate(h, 8), bound, 16 if effort.narrow else 24))
        return b.extend(narrow, x.ring + 8)

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        cut = y.frac - x.frac
        return b.add(x, b.truncate(y, cut, min(y.ring - cut, x.ring)), bound=bound)


def masked(b: Builder, s: Wire, mask: Wire) -> Wire:
    """Scores [..., n] with the mask [..., N] added to the first N."""
    last, n = len(s.shape) - 1, mask.shape[-1]
    first = b.add(b.view(s, slices=((last, 0, n),)), mask, ring=s.ring, bound=s.bound)
    return b.join(first, b.view(s, slices=((last, n, s.shape[-1]),)), dim=last) if n < s.shape[-1] else first

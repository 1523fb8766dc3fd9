"""The style of `ditto`: narrow types by calibration, functions of one opening."""

from __future__ import annotations

import torch
from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.functions import ScoreType, gelu, layernorm, linear, softmax_numerator, tanh
from ditto.functions.fixed import multiply
from ditto.functions.layernorm import RESIDUAL
from ditto.functions.linear import fraction_bits
from ditto.functions.softmax import reciprocal_of_sum
from ditto.ops import Matmul
from ditto.presets.style import Spec
from ditto.ring.fixedpoint import encode

EMBEDDING_RING, EMBEDDING_FRAC = 16, 12  # fewer fraction bits where the tables' values need the room
HIDDEN_FRAC = 8


def score_types(spec: Spec) -> list[ScoreType]:
    """The score type of each layer: the narrowest circle that its calibrated scores fit. Raises RangeError."""
    return [ScoreType.of(layer["scores"]) for layer in spec["calibration"]["layers"]]


class Circle:
    """What both styles of `ditto` share: centred weights, masks on the circles of the scores, linear layers."""

    centred = True

    def masks(self, b: Builder, spec: Spec, batch: int, seq: int) -> list[Wire]:
        """The same padding on the circle of each score type in use."""
        circles = score_types(spec)
        wires = {c: b.input(f"mask.{c.frac}", 16, c.frac, (batch, 1, 1, seq), 0.0) for c in dict.fromkeys(circles)}
        return [wires[c] for c in circles]

    def encode_masks(self, spec: Spec, padding: Tensor) -> dict[str, Tensor]:
        """Masked scores go round the circle: the representative in [-T/2, T/2)."""
        out = {}
        for circle in dict.fromkeys(score_types(spec)):
            period = 2.0**circle.log_range
            on_circle = torch.remainder(padding.double() * circle.mask + period / 2, period) - period / 2
            out[f"mask.{circle.frac}"] = encode(on_circle[:, None, None, :], 16, circle.frac)
        return out

    def project(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        (opened,) = b.open(x)
        return linear(b, opened, name, columns, bound)


class OneOpening(Circle):
    """Activations between blocks on (32, 8); scores on a circle of 2^16 steps; see docs/protocol.md.

    What enters a LayerNorm is free of its mean without any work under MPC: the tables and weights that lead there are
    centred when they are encoded, and the residual comes centred from the LayerNorm before.
    """

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        """As many fraction bits as the tables' calibrated sum leaves in the ring."""
        bound = spec["calibration"]["embeddings"]["bound"]
        return EMBEDDING_RING, fraction_bits(bound, EMBEDDING_RING, EMBEDDING_FRAC)

    def attention(
        self, b: Builder, x: Wire, mask: Wire, ranges: Spec, name: str, heads: int, batch: int, seq: int
    ) -> Wire:
        circle = ScoreType.of(ranges["scores"])
        rows, width = x.shape
        b.label("qkv")
        qkv = self.project(b, x, f"{name}.qkv", 3 * width, ranges["qkv"])
        frac = fraction_bits(ranges["qkv"], 16, HIDDEN_FRAC)
        (qkv,) = b.open(b.truncate(qkv, qkv.frac - frac, 16))

        def part(i: int, ring: int, dims: tuple[int, ...]) -> Wire:
            one = b.view(
                qkv, slices=((1, i * width, (i + 1) * width),), shape=(batch, seq, heads, width // heads), dims=dims
            )
            return b.extend(one, ring)

        b.label("scores")
        q, k, v = b.open(part(0, 32, (0, 2, 1, 3)), part(1, 32, (0, 2, 3, 1)), part(2, 40, (0, 2, 1, 3)))
        op = Matmul(q.shape, k.shape, 32)
        (s,) = b.emit(op, [q, k], [(32, 2 * frac, op.shape, circle.bound)])
        if 2 * frac < circle.frac:
            s = b.affine(s, 1, 0, circle.frac)
        s = b.truncate(s, s.frac - circle.frac, 16)
        b.label("softmax")
        e, total, limits = softmax_numerator(b, b.add(s, mask, bound=circle.bound), circle)
        inverse, (e_open,) = reciprocal_of_sum(b, total, limits, (e,))
        b.label("context")
        op = Matmul(e.shape, v.shape, 40)
        bound = limits[1] * ranges["qkv"]
        (context,) = b.emit(op, [e_open, v], [(40, e.frac + v.frac, op.shape, bound)])
        context, inverse = b.open(b.truncate(context, 8, 32), inverse)
        context = multiply(b, context, inverse, 64, bound=ranges["context"])
        context = b.truncate(context, context.frac - HIDDEN_FRAC, 32)
        return b.view(b.view(context, dims=(0, 2, 1, 3)), shape=(rows, width))

    def gelu(self, b: Builder, h: Wire, bound: float) -> Wire:
        h = b.truncate(h, 8)
        b.label("gelu")
        h = gelu(b, h, bound)
        frac = fraction_bits(h.bound, 16, HIDDEN_FRAC)
        (narrow,) = b.open(b.truncate(h, h.frac - frac, 16))
        wide = b.extend(narrow, 32)
        b.label("ffn out")
        return wide

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """The sum on (24, 12)."""
        return b.add(b.truncate(y, y.frac - RESIDUAL.frac, RESIDUAL.ring), x, ring=RESIDUAL.ring, bound=bound)

    def norm(self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float) -> tuple[Wire, Wire]:
        return layernorm(b, x, name, tuple(ranges["var"]), eps, ranges["out"])

    def tanh(self, b: Builder, y: Wire, bound: float) -> Wire:
        y = tanh(b, b.truncate(y, 8), bound)
        (narrow,) = b.open(b.truncate(y, y.frac - 12, 16))
        return b.extend(narrow, 32)

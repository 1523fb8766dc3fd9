"""The style of the published systems for causal Transformers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import truncate_to
from ditto.ops import CausalMask
from ditto.presets.causal import Effort, Heads
from ditto.presets.causal_one_opening import masked
from ditto.presets.recipe import Recipe, padding_score
from ditto.presets.style import Spec


@dataclass(frozen=True)
class CausalRecipe:
    """A `Recipe` (not one with 2Quad) block by block; LayerNorm keeps its own gamma and beta."""

    recipe: Recipe
    centred = False
    folded = False
    narrows = False

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        return self.recipe.embedding_type(spec)

    def masks(self, b: Builder, spec: Spec, batch: int, seq: int) -> list[Wire]:
        return self.recipe.masks(b, spec, batch, seq)

    def encode_masks(self, spec: Spec, padding: Tensor) -> dict[str, Tensor]:
        return self.recipe.encode_masks(spec, padding)

    def stream(self, b: Builder, x: Wire, spec: Spec) -> Wire:
        """In the linear layers' type, as narrow as a projection leaves it."""
        fxp = self.recipe.linear
        if x.frac > fxp.frac:
            x = truncate_to(b, x, fxp.frac)
        (opened,) = b.open(x)
        x = b.extend(opened, fxp.ring - fxp.frac)
        return b.affine(x, 1, 0, fxp.frac) if x.frac < fxp.frac else x

    def heads(
        self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float, heads: int, batch: int
    ) -> Heads:
        (rows, width), ring = x.shape, self.recipe.linear.ring
        b.label("qkv")
        qkv = self.norm_project(b, x, f"{name}.norm1", f"{name}.qkv", 3 * width, ranges["norm1"], ranges["qkv"], eps)
        (qkv,) = b.open(qkv)

        def part(i: int, dims: tuple[int, ...]) -> Wire:
            one = b.view(qkv, ((1, i * width, (i + 1) * width),), (batch, rows // batch, heads, width // heads), dims)
            return b.extend(one, ring)

        q, k, v = b.open(part(0, (0, 2, 1, 3)), part(1, (0, 2, 3, 1)), part(2, (0, 2, 1, 3)))
        return q, k, v

    def attend(self, b: Builder, x: Wire, heads: Heads, mask: Wire | None, ranges: Spec, effort: Effort) -> Wire:
        q, k, v = heads
        b.label("scores")
        s = truncate_to(b, self.recipe.matmul(b, q, k, ranges["scores"]), self.recipe.linear.frac)
        b.label("softmax")
        if q.shape[2] > 1:
            hidden = round(padding_score(ranges["scores"]) * 2**s.frac)
            (s,) = b.emit(CausalMask(q.shape[2], s.ring, hidden), [s], [(s.ring, s.frac, s.shape, s.bound)])
        if mask is not None:
            s = masked(b, s, mask)
        s = b.retype(s, bound=s.bound - padding_score(ranges["scores"]))
        return self.recipe.context(b, self.recipe.softmax(b, s), v, ranges["context"])

    def norm_project(
        self, b: Builder, x: Wire, norm: str, name: str, columns: int, ranges: Spec, bound: float, eps: float
    ) -> Wire:
        label = b.current
        b.label("layernorm")
        z, _ = self.recipe.norm(b, x, norm, ranges, eps)
        b.label(label)
        return self.project(b, z, name, columns, bound)

    def project(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        return self.recipe.project(b, x, name, columns, bound)

    def gelu(self, b: Builder, x: Wire, h: Wire, bound: float, effort: Effort) -> Wire:
        return self.recipe.gelu(b, h, bound)

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        return self.recipe.residual(b, x, y, bound)

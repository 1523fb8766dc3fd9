"""What a preset decides about a causal Transformer (pre-LayerNorm, with a cache of keys and values)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.presets.style import Spec

Heads = tuple[Wire, Wire, Wire]  # opened q [B, heads, n, d], k [B, heads, d, n], v [B, heads, n, d]


@dataclass(frozen=True)
class Effort:
    """What a stage may spend. `few` rows: fewer rounds are worth larger tables. `narrow`: fewer bits will do."""

    few: bool = False
    narrow: bool = False


class CausalStyle(Protocol):
    """The parts of a block whose order `ditto.models.gpt2` knows.

    The residual stream and activations are shares [batch * n, H]; `ranges` is the layer's part of the calibration.
    """

    @property
    def centred(self) -> bool:
        """Are tables and weights that lead into the residual stream encoded without their mean over the features?"""

    @property
    def narrows(self) -> bool:
        """Has it narrower types for later tokens?"""

    @property
    def folded(self) -> bool:
        """Are gamma and beta part of the projection after a LayerNorm (and not weights of their own)?"""

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        """(ring, fraction bits) of the embedding tables."""

    def masks(self, b: Builder, spec: Spec, batch: int, seq: int) -> list[Wire]:
        """Inputs [B, 1, 1, N] that keep a prompt's padding out of later tokens' attention, one for each layer."""

    def encode_masks(self, spec: Spec, padding: Tensor) -> dict[str, Tensor]:
        """Those inputs as ring integers; padding [batch, seq] is 1 where there is no token."""

    def stream(self, b: Builder, x: Wire, spec: Spec) -> Wire:
        """Embeddings as the residual stream takes them."""

    def heads(
        self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float, heads: int, batch: int
    ) -> Heads:
        """LayerNorm and the projections of queries (scaled by 1/sqrt(d) in the weights), keys and values."""

    def attend(self, b: Builder, x: Wire, heads: Heads, mask: Wire | None, ranges: Spec, effort: Effort) -> Wire:
        """Context [rows, H] of all queries, ready for the projection into the residual stream x; several queries
        attend causally, a single one to every key.

        The mask, if any, is added to the scores of the first keys.
        """

    def norm_project(
        self, b: Builder, x: Wire, norm: str, name: str, columns: int, ranges: Spec, bound: float, eps: float
    ) -> Wire:
        """LayerNorm with the given ranges and the projection after it."""

    def project(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """A linear layer with secret weights, not after a LayerNorm."""

    def gelu(self, b: Builder, x: Wire, h: Wire, bound: float, effort: Effort) -> Wire:
        """tanh-GELU of a projection, ready for the projection into the residual stream x."""

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """The residual stream x and a projection y added."""

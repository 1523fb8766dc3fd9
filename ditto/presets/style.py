"""What a preset decides about a Transformer: types and operations, layer by layer."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ditto.engine.program import Builder, Wire

Spec = dict[str, Any]


class Style(Protocol):
    """The parts of a block whose order `ditto.models.bert` knows.

    Activations are shares [batch * seq, H]; `ranges` is the layer's part of the calibration.
    """

    @property
    def centred(self) -> bool:
        """Are tables and weights that lead into a LayerNorm encoded without their mean over the features?"""

    def embedding_type(self, spec: Spec) -> tuple[int, int]:
        """(ring, fraction bits) of the embedding tables."""

    def masks(self, b: Builder, spec: Spec, batch: int, seq: int) -> list[Wire]:
        """Inputs that keep padding out of the attention, one for each layer (one wire may serve all)."""

    def encode_masks(self, spec: Spec, padding: Tensor) -> dict[str, Tensor]:
        """Those inputs as ring integers; padding [batch, seq] is 1 where there is no token."""

    def attention(
        self, b: Builder, x: Wire, mask: Wire, ranges: Spec, name: str, heads: int, batch: int, seq: int
    ) -> Wire:
        """Multi-head attention up to the context [rows, H]; 1/sqrt(d) is folded into the query weights."""

    def project(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """A linear layer with secret weights."""

    def gelu(self, b: Builder, h: Wire, bound: float) -> Wire:
        """GELU of a projection, ready for the next one; labels what follows it as the next projection."""

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """x + y of what the last `norm` left for the residual and a projection, ready for `norm`."""

    def norm(self, b: Builder, x: Wire, name: str, ranges: Spec, eps: float) -> tuple[Wire, Wire]:
        """LayerNorm with secret gamma and beta: its result, and the result as the next residual takes it."""

    def tanh(self, b: Builder, y: Wire, bound: float) -> Wire:
        """tanh of a projection, ready for the next one."""

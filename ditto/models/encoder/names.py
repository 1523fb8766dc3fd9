"""Tensor names: a family's in its checkpoints, beside the project's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ditto.models.description import Dimensions

Row = tuple[str, str, tuple[int, ...]]  # the project's name, the checkpoint's, shape


@dataclass(frozen=True)
class Names:
    """Modules as a checkpoint calls them, below its prefix; `layer` has a place for the number. Empty: none there."""

    query: str
    key: str
    value: str
    out: str
    norm1: str
    ffn1: str
    ffn2: str
    norm2: str
    layer: str = "encoder.layer.{}."
    word: str = "embeddings.word_embeddings"
    position: str = "embeddings.position_embeddings"
    token_type: str = "embeddings.token_type_embeddings"
    norm: str = "embeddings.LayerNorm"
    projection: str = ""
    relative: str = ""

    def rows(self, d: Dimensions, skipped: int = 0) -> Iterator[Row]:
        """All tensors of the encoder; the checkpoint's table of positions has `skipped` rows before the first."""
        yield "embeddings.word.weight", f"{self.word}.weight", (d.vocabulary, d.embedding)
        yield "embeddings.position.weight", f"{self.position}.weight", (d.positions + skipped, d.embedding)
        if d.token_types:
            yield "embeddings.type.weight", f"{self.token_type}.weight", (d.token_types, d.embedding)
        yield from _norm("embeddings.norm", self.norm, d.embedding)
        if self.projection and d.embedding != d.hidden:
            yield from _linear("embeddings.projection", self.projection, d.embedding, d.hidden)
        if self.relative:
            yield "relative.weight", f"{self.relative}.weight", (d.relative_buckets, d.heads)
        for i in range(d.layers):
            ours, theirs = f"layer.{i}.", self.layer.format(i)
            for part in ("query", "key", "value", "out"):
                yield from _linear(f"{ours}{part}", f"{theirs}{getattr(self, part)}", d.hidden, d.hidden)
            yield from _linear(f"{ours}ffn1", f"{theirs}{self.ffn1}", d.hidden, d.inner)
            yield from _linear(f"{ours}ffn2", f"{theirs}{self.ffn2}", d.inner, d.hidden)
            yield from _norm(f"{ours}norm1", f"{theirs}{self.norm1}", d.hidden)
            yield from _norm(f"{ours}norm2", f"{theirs}{self.norm2}", d.hidden)


def _linear(ours: str, theirs: str, inputs: int, outputs: int) -> Iterator[Row]:
    yield f"{ours}.weight", f"{theirs}.weight", (outputs, inputs)
    yield f"{ours}.bias", f"{theirs}.bias", (outputs,)


def _norm(ours: str, theirs: str, width: int) -> Iterator[Row]:
    yield f"{ours}.weight", f"{theirs}.weight", (width,)
    yield f"{ours}.bias", f"{theirs}.bias", (width,)

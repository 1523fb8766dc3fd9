"""What a preset decides about a Transformer: types and operations, verb by verb of a block.

The architecture knows the order of the verbs (a LayerNorm before or after what it normalizes, where the residual stream
adds up); a style knows types, rings and functions. Activations are shares [rows, H], rows = texts * tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Fits
from ditto.functions.fixed import FixedPoint
from ditto.functions.smooth import Zone
from ditto.presets.choices import Choices

Variances = tuple[float, float]  # the least and the largest
Projection = tuple[Tensor, Tensor]  # weight [inputs, outputs] and bias


@dataclass(frozen=True)
class Stage:
    """How a block is used. `later`: for one more token of each text, where fewer rounds are worth larger tables.
    `narrow`: fewer bits will do."""

    causal: bool = False
    later: bool = False
    narrow: bool = False


ENCODER = Stage()


@dataclass(frozen=True)
class Norm:
    """A LayerNorm with secret gamma and beta: its name, its variance's range, the bound of its result, and of the
    residual sum that the result goes into (0: into none). `whole`: its result is an output of the program."""

    name: str
    variance: Variances
    bound: float
    epsilon: float
    residual: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class Stream:
    """A residual stream that no LayerNorm cuts: its largest |x|, the least variance of what is normalized."""

    bound: float
    least_variance: float


class Scores(NamedTuple):
    """Bounds of a layer's scores: `size` of |scores|. The others are of scores less that of the first key: the largest,
    how far the least lies below 0, and how far a row's least lies below its largest."""

    size: float
    above: float
    below: float
    spread: float


class Heads(NamedTuple):
    """Opened queries [B, heads, n, d], keys [B, heads, d, N] (scaled in the weights), values
    [B, heads, N, d]; `keep`: what an attention without a maximum counts, where a style needs it; `first`: the text's
    first key, where a style needs it for later tokens."""

    q: Wire
    k: Wire
    v: Wire
    keep: Wire | None = None
    first: Wire | None = None


class AttentionBounds(NamedTuple):
    """Largest |x| of queries, keys and values; bounds of scores; largest |x| of the context."""

    qkv: float
    scores: Scores
    context: float


class Normed(NamedTuple):
    """A LayerNorm's result as the next projections (or the program's output) and as the next residual sum take it.

    `mean`: of each row of the residual, where a style takes it off in the next LayerNorm.
    """

    out: Wire
    residual: Wire
    mean: Wire | None = None

    @property
    def wires(self) -> list[Wire]:
        return [wire for wire in self if wire is not None]


class Style(Protocol):
    """A preset's side of a block."""

    @property
    def centred(self) -> bool:
        """Are tables and weights that lead into a LayerNorm encoded without their mean over the features?"""

    @property
    def folded(self) -> bool:
        """Are gamma and beta part of the projections that read a LayerNorm?"""

    @property
    def repeats(self) -> bool:
        """Is an encoder's padding computed as its text's first token is?"""

    @property
    def quad(self) -> bool:
        """Does it compute Quad in the place of GELU?"""

    @property
    def narrows(self) -> bool:
        """Has it narrower types for later tokens?"""

    @property
    def open(self) -> bool:
        """Does it leave anything to choose?"""

    def chosen(self, choices: Choices) -> Style:
        """This style with what it leaves open decided; itself where it leaves nothing open."""

    def table(self, bound: float, stream: Stream | None = None) -> FixedPoint:
        """The type of embedding tables whose rows' sum is at most `bound`. A LayerNorm follows, or they are the
        beginning of a stream. Raises RangeError where no type holds the stream."""

    def enter(self, b: Builder, x: Wire) -> Wire:
        """Embeddings as a stream takes them."""

    def project_embeddings(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Normed:
        """A projection of the embeddings in the place of a LayerNorm's result: the first block reads it, and the
        first residual sum. A centred style has one column more, the mean of the others."""

    def masks(self, b: Builder, scores: list[Scores], batch: int, n: int) -> list[Wire]:
        """Inputs that keep padding out of the attention, one for each layer (one wire may serve all); `scores` are
        the layers' bounds."""

    def encode_masks(self, scores: list[Scores], padding: Tensor) -> dict[str, Tensor]:
        """Those inputs as ring integers; padding [batch, n] is 1 where there is no token."""

    def bias(self, scores: Scores) -> FixedPoint:
        """The type of what is added to the scores of a layer."""

    def scales(self, scores: Scores, size: int) -> tuple[float, float]:
        """What an encoder's weights of queries and of keys are multiplied with; `size`: of a head."""

    def linear(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """A linear layer with secret weights."""

    def norm(self, b: Builder, x: Wire, norm: Norm, mean: Wire | None = None) -> Normed:
        """A LayerNorm whose result projections and the residual sum read; `mean` by row of what its input sums up."""

    def read(self, b: Builder, x: Wire, name: str, columns: int, bound: float) -> Wire:
        """A linear layer of a LayerNorm's result, `Normed.out`."""

    def norm_linear(
        self, b: Builder, x: Wire, norm: Norm, name: str, columns: int, bound: float, stage: Stage = ENCODER
    ) -> Wire:
        """A LayerNorm and the projection after it, which alone reads it; for a later token in fewer rounds."""

    def heads(
        self,
        b: Builder,
        x: Wire,
        name: str,
        count: int,
        batch: int,
        bounds: AttentionBounds,
        stage: Stage,
        *,
        norm: Norm | None = None,
        mask: Wire | None = None,
    ) -> Heads:
        """Queries, keys and values of `Normed.out`, or of x after the LayerNorm `norm`, in `count` heads. Whoever
        generates text keeps `Heads.first`, if any, for later stages as `name`.first."""

    def attend(
        self,
        b: Builder,
        heads: Heads,
        bounds: AttentionBounds,
        residual: Wire,
        stage: Stage,
        *,
        mask: Wire | None = None,
        bias: Wire | None = None,
    ) -> Wire:
        """Context [rows, H] of all queries, ready for the projection into the residual stream.

        The mask, if any, keeps padding out of the first keys; a bias [1 or B, heads, n, N]
        is added to the scores. Several queries attend
        causally where the stage says so, a single one to every key.
        """

    def halves(self, function: str, stage: Stage) -> bool:
        """Does `activation` leave out half of what it reads, which `feed_in` has beside it?"""

    def half(self, first: Projection, second: Tensor, bounds: tuple[float, float], residual: int) -> Projection:
        """What that is a projection by, of both of the network's weights [inputs, outputs] with their public scales;
        `residual`: ring bits of the residual stream."""

    def feed_in(
        self, b: Builder, x: Wire, name: str, columns: tuple[int, int], bounds: tuple[float, float], function: str,
        residual: Wire, stage: Stage,
    ) -> tuple[Wire, Wire | None]:  # fmt: skip
        """The first projection of a feed-forward network, of a LayerNorm's result; and what is added to the second
        one's, if `halves`. Columns and bounds of both."""

    def zones(self, function: str, neurons: Sequence[tuple[int, float]], fits: Fits) -> list[Zone]:
        """How the activation of a feed-forward network goes by (columns, bound) of its neurons; none: by one bound."""

    def activation(
        self, b: Builder, function: str, h: Wire, bound: float, residual: Wire | None, fits: Fits, stage: Stage,
        zones: Sequence[Zone] = (),
    ) -> Wire:  # fmt: skip
        """A function ("gelu", "tanh gelu", "quad", "tanh", "relu") of a projection, ready for the next one, which
        leads into the residual stream where there is one. With `zones` h and the result carry their scales."""

    def residual(self, b: Builder, x: Wire, y: Wire, bound: float) -> Wire:
        """x + y of the residual stream (or what `norm` left for it) and a projection."""


def split_heads(b: Builder, qkv: Wire, part: int, count: int, batch: int) -> Wire:
    """Of a projection [rows, 3 H] the queries (0), keys (1) or values (2) by head: keys as [B, heads, d, n]."""
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    cut = ((1, part * width, (part + 1) * width),)
    dims = (0, 2, 3, 1) if part == 1 else (0, 2, 1, 3)
    return b.view(qkv, cut, (batch, rows // batch, count, width // count), dims)


def merge_heads(b: Builder, context: Wire) -> Wire:
    """[B, heads, n, d] -> [B n, H]."""
    batch, count, n, d = context.shape
    return b.view(b.view(context, dims=(0, 2, 1, 3)), shape=(batch * n, count * d))


def masked(b: Builder, scores: Wire, mask: Wire) -> Wire:
    """Scores [..., N] with a mask [..., m] added to the first m of them."""
    last, n, m = len(scores.shape) - 1, scores.shape[-1], mask.shape[-1]
    first = scores if m == n else b.view(scores, slices=((last, 0, m),))
    first = b.add(first, mask, ring=scores.ring, bound=scores.bound + mask.bound)
    return first if m == n else b.join(first, b.view(scores, slices=((last, m, n),)), dim=last)

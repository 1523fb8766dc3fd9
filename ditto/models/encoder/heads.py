"""What stands on an encoder: its hidden states, one classification a text, or one a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import torch
import torch.nn.functional as F

from ditto.engine.program import Builder, Wire
from ditto.functions.fit import Fits
from ditto.models.architecture import Answer, Config, Shapes, Tensors
from ditto.models.description import Dimensions, Ranges, required
from ditto.models.encoder.config import labels
from ditto.models.encoder.pooling import pooled
from ditto.models.ranges import LEAST_LOGITS, LOGITS_MARGIN, Observe, Seen
from ditto.models.tokenizer import Batch
from ditto.presets.style import ENCODER, Style


class HeadRanges(TypedDict, total=False):
    pooler: float
    logits: float


SPAN = ("start", "end")  # logits of an answer within the text
HEAD = -2  # stands for the head's layer in what is observed
FLOATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}


class Head(Protocol):
    """The last layers of an architecture. Its tensors have the same names in the project as below."""

    @property
    def answer(self) -> Answer: ...

    @property
    def whole(self) -> bool:
        """Does it read the hidden states as they are, not by a projection?"""

    @property
    def first(self) -> str:
        """Its module that reads the hidden states, if any."""

    def labels(self, config: Config) -> tuple[str, ...]: ...

    def names(self) -> dict[str, str]:
        """The project's modules by the checkpoint's names of them."""

    def shapes(self, d: Dimensions) -> Shapes: ...

    def floats(self, t: Tensors, hidden: torch.Tensor, observe: Observe) -> torch.Tensor:
        """The output in plaintext from hidden states [B, N, H]."""

    def ranges(self, seen: Seen) -> HeadRanges:
        """Its part of `Ranges`."""

    def compile(self, b: Builder, x: Wire, style: Style, d: Dimensions, ranges: Ranges, fits: Fits, batch: int) -> None:
        """Its steps on hidden states [rows, H], as the last LayerNorm left them, and the program's output."""

    def answers(self, values: torch.Tensor, batch: Batch, d: Dimensions) -> list[Any]:
        """One answer a text from the output's values."""


@dataclass(frozen=True)
class Hidden:
    """The hidden states; the client makes a text's vector of them (`pooling`)."""

    answer = Answer.vector
    whole = True
    first = ""

    def labels(self, config: Config) -> tuple[str, ...]:
        return ()

    def names(self) -> dict[str, str]:
        return {}

    def shapes(self, d: Dimensions) -> Shapes:
        return {}

    def floats(self, t: Tensors, hidden: torch.Tensor, observe: Observe) -> torch.Tensor:
        return hidden

    def ranges(self, seen: Seen) -> HeadRanges:
        return {}

    def compile(self, b: Builder, x: Wire, style: Style, d: Dimensions, ranges: Ranges, fits: Fits, batch: int) -> None:
        b.output("hidden", x)

    def answers(self, values: torch.Tensor, batch: Batch, d: Dimensions) -> list[Any]:
        hidden = values.reshape(*batch.shape, -1)
        vectors: list[Any] = pooled(hidden, batch.mask, d.pooling, d.normalize).tolist()
        return vectors


@dataclass(frozen=True)
class Pooled:
    """One classification a text, from its first token: dense, `function`, dense. Modules by the checkpoint's names."""

    dense: str
    out: str
    function: str = "tanh"
    answer = Answer.labels
    whole = False
    first = "pooler"

    def labels(self, config: Config) -> tuple[str, ...]:
        return labels(config)

    def names(self) -> dict[str, str]:
        return {self.dense: "pooler", self.out: "classifier"}

    def shapes(self, d: Dimensions) -> Shapes:
        count = len(d.labels)
        return {
            "pooler.weight": (d.hidden, d.hidden), "pooler.bias": (d.hidden,),
            "classifier.weight": (count, d.hidden), "classifier.bias": (count,),
        }  # fmt: skip

    def floats(self, t: Tensors, hidden: torch.Tensor, observe: Observe) -> torch.Tensor:
        dense = F.linear(hidden[:, 0], t["pooler.weight"], t["pooler.bias"])
        observe(HEAD, "pooler", dense)
        logits = F.linear(FLOATS[self.function](dense), t["classifier.weight"], t["classifier.bias"])
        observe(HEAD, "logits", logits)
        return logits

    def ranges(self, seen: Seen) -> HeadRanges:
        return {"pooler": seen.bound(HEAD, "pooler"), "logits": seen.bound(HEAD, "logits", LOGITS_MARGIN, LEAST_LOGITS)}

    def compile(self, b: Builder, x: Wire, style: Style, d: Dimensions, ranges: Ranges, fits: Fits, batch: int) -> None:
        wide, most = required(ranges.pooler, "ranges.pooler"), required(ranges.logits, "ranges.logits")
        b.layer("head")
        with b.label("pooler"):
            cube = b.view(x, shape=(batch, x.shape[0] // batch, d.hidden))
            first = b.view(cube, slices=((1, 0, 1),), shape=(batch, d.hidden))
            y = style.read(b, first, "pooler", d.hidden, wide)
            y = style.activation(b, self.function, y, wide, None, fits, ENCODER)
        with b.label("classifier"):
            b.output("logits", style.linear(b, y, "classifier", len(d.labels), most))

    def answers(self, values: torch.Tensor, batch: Batch, d: Dimensions) -> list[Any]:
        rows: list[Any] = values.tolist()
        return rows


@dataclass(frozen=True)
class EveryToken:
    """One classification a token. Fixed `outputs` have no names in the configuration: start and end of a span."""

    out: str
    outputs: tuple[str, ...] = ()
    whole = False
    first = "classifier"

    @property
    def answer(self) -> Answer:
        return Answer.span if self.outputs else Answer.tokens

    def labels(self, config: Config) -> tuple[str, ...]:
        return self.outputs or labels(config)

    def names(self) -> dict[str, str]:
        return {self.out: "classifier"}

    def shapes(self, d: Dimensions) -> Shapes:
        return {"classifier.weight": (len(d.labels), d.hidden), "classifier.bias": (len(d.labels),)}

    def floats(self, t: Tensors, hidden: torch.Tensor, observe: Observe) -> torch.Tensor:
        logits = F.linear(hidden, t["classifier.weight"], t["classifier.bias"])
        observe(HEAD, "logits", logits)
        return logits

    def ranges(self, seen: Seen) -> HeadRanges:
        return {"logits": seen.bound(HEAD, "logits", LOGITS_MARGIN, LEAST_LOGITS)}

    def compile(self, b: Builder, x: Wire, style: Style, d: Dimensions, ranges: Ranges, fits: Fits, batch: int) -> None:
        most = required(ranges.logits, "ranges.logits")
        b.layer("head")
        with b.label("classifier"):
            b.output("logits", style.read(b, x, "classifier", len(d.labels), most))

    def answers(self, values: torch.Tensor, batch: Batch, d: Dimensions) -> list[Any]:
        """Logits of the tokens that are the text's."""
        size, n = batch.shape
        by_text = values.reshape(size, n, -1)
        return [rows[mask.bool()].tolist() for rows, mask in zip(by_text, batch.mask, strict=True)]

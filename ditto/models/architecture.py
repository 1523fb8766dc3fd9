"""What a class of Hugging Face models is to Ditto: one protocol, satisfied in one file (or folder) each.

An architecture reads a checkpoint (configuration, tensor names), runs in plaintext with taps for calibration, encodes
its weights, compiles to programs, and encodes and decodes for the client. `ditto.models.registry` has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

import torch

from ditto.engine.plan import Plan
from ditto.engine.program import Program
from ditto.functions.fit import Fits
from ditto.models.description import Description, Dimensions, Ranges
from ditto.models.ranges import Observe, Seen
from ditto.models.tokenizer import Batch, Prompts, Tokenizer

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]
Config = Mapping[str, Any]
Texts = Batch | Prompts


class Answer(StrEnum):
    """What comes back for a text."""

    vector = "vector"  # its hidden states, pooled: [H]
    labels = "labels"  # one logit a label: [labels]
    tokens = "tokens"  # one logit a label for every token: [tokens][labels]
    span = "span"  # start and end logits of every token: [tokens][2]
    text = "text"  # generated tokens


class Architecture(Protocol):
    """One Hugging Face class. Tensors are fp32, by the checkpoint's names below its prefix in `expected`, by names of
    the project's own, the same for a whole family, everywhere else."""

    @property
    def answer(self) -> Answer: ...

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What a checkpoint may write before the names of its tensors, such as "bert."."""

    def dimensions(self, config: Config) -> Dimensions:
        """From config.json. Raises UnsupportedArchitecture for variants, KeyError for a size that is missing."""

    def expected(self, d: Dimensions) -> Shapes:
        """Names and shapes of the tensors in a checkpoint."""

    def adopt(self, tensors: Tensors, d: Dimensions) -> Tensors:
        """Those tensors by the project's names."""

    def shapes(self, d: Dimensions) -> Shapes:
        """Names and shapes of what `adopt` returns."""

    def batches(self, tokenizer: Tokenizer, texts: list[Any], d: Dimensions) -> list[Texts]:
        """Texts as calibration takes them."""

    def calibrate(self, t: Tensors, d: Dimensions, seen: Seen) -> tuple[Ranges, Tensors]:
        """Ranges of what `floats` showed, where padding counts too, since it is computed; and the same model with the
        neurons of its feed-forward networks in the order that the ranges speak of."""

    def compile(self, description: Description, plan: Plan, stage: int = 0, fits: Fits | None = None) -> Program:
        """One stage of a job; `fits` in the place of the description's. Raises UsageError for a plan that the model
        does not take."""

    def weights(self, description: Description, t: Tensors) -> Tensors:
        """Real weights by the program's names."""

    def encode(self, description: Description, program: Program, batch: Any, tables: Tensors | None = None) -> Tensors:
        """Ring integers of the first stage's inputs; `tables`: the model's own, where embeddings are public."""

    def decode(self, description: Description, program: Program, outputs: Tensors, batch: Any) -> list[Any]:
        """One answer a text, as `answer` says."""

    def floats(self, t: Tensors, d: Dimensions, batch: Any, observe: Observe) -> torch.Tensor:
        """The plaintext model's output in fp32, by token or by text; what it comes by is shown to `observe`."""

    def reference(self, t: Tensors, d: Dimensions, batch: Any) -> list[Any]:
        """The same answers by the plaintext model in fp32."""


class Generator(Architecture, Protocol):
    """An architecture that continues texts, token by token."""

    def encode_next(self, description: Description, program: Program, ids: list[int], positions: list[int]) -> Tensors:
        """Ring integers of a later stage's inputs: one token of each text, and where it stands in its text."""

    def logits(self, program: Program, outputs: Tensors) -> torch.Tensor:
        """Next-token logits [B, V] (or at every position, [B n, V]) in floats."""

    def tokens(self, description: Description, outputs: Tensors) -> list[int]:
        """The next token of each text, where the servers chose it. Raises RangeError for what is no token."""

    def continue_texts(
        self,
        t: Tensors,
        d: Dimensions,
        texts: list[list[int]],
        count: int,
        choose: Callable[[torch.Tensor], list[int]],
        stop: int | None = None,
    ) -> list[list[int]]:
        """Up to `count` tokens after each text by the plaintext model, as `choose` picks them from logits [B, V]."""

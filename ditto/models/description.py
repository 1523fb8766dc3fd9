"""What is public of a model: typed, limited, and checked wherever it enters a process.

A description travels as JSON. It holds sizes, calibrated ranges and the coefficients of fitted functions: all that the
servers need to compile the program, and nothing that another processor would compute differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from ditto.errors import BadDescription, VersionMismatch
from ditto.functions.fit import Fit, Fits
from ditto.presets.choices import DEFAULT, Choices

Format = Literal[6]  # of descriptions and of encoded weights
FORMAT: Format = 6
LONGEST = 4 << 20  # characters of a description
DIGITS = 3  # of a bound: exact maxima tell about the texts of the calibration

T = TypeVar("T")
Count = Annotated[int, Field(ge=1, le=65_536)]
Bound = Annotated[float, Field(ge=0, le=1e6)]  # of |x|
Variance = Annotated[float, Field(gt=0, le=1e12)]
Label = Annotated[str, Field(max_length=200)]
Pooling = Literal["mean", "cls", "max"]  # of a text's hidden states
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


class _Public(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dimensions(_Public):
    """Sizes and variants of a Transformer, whatever its family calls them."""

    hidden: Count
    layers: Annotated[int, Field(ge=1, le=512)]
    heads: Annotated[int, Field(ge=1, le=1_024)]
    inner: Annotated[int, Field(ge=1, le=262_144)]  # of the feed-forward network
    vocabulary: Annotated[int, Field(ge=1, le=2_000_000)]
    positions: Count  # the longest text
    token_types: Annotated[int, Field(ge=0, le=16)] = 0
    embedding: Count  # width of the tables; a projection follows where it is not `hidden`
    epsilon: Annotated[float, Field(gt=0, le=1)]  # of LayerNorm
    activation: Literal["gelu", "tanh gelu", "quad"] = "gelu"
    labels: Annotated[tuple[Label, ...], Field(max_length=10_000, strict=False)] = ()
    relative_buckets: Annotated[int, Field(ge=0, le=1_024)] = 0  # of relative positions, where scores have a bias
    relative_distance: Annotated[int, Field(ge=0, le=65_536)] = 0  # beyond which all share the last bucket
    pooling: Pooling = "mean"  # by the client, where answers are vectors
    normalize: bool = False  # and then to length 1
    problem_type: Problem = "single_label_classification"  # what a text's logits are: for softmax, sigmoids, numbers

    @model_serializer(mode="wrap")
    def _without_the_usual(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """A description of before there was a `problem_type` keeps its text and so its digest, by which it is known."""
        found = dump(self)
        if found["problem_type"] == "single_label_classification":
            del found["problem_type"]
        return found

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden size {self.hidden} is not a multiple of {self.heads} heads")
        return self


def is_score(d: Dimensions) -> bool:
    """Are a text's outputs numbers as they are, without labels that one could choose among?"""
    return len(d.labels) == 1 or d.problem_type == "regression"


def is_multi_label(d: Dimensions) -> bool:
    """May several labels of a text be right at once, or none?"""
    return d.problem_type == "multi_label_classification" and not is_score(d)


class NormRange(_Public):
    """A LayerNorm: largest |x| of its input (also less its mean) and of its result, least and largest variance."""

    input: Bound
    output: Bound
    variance: Annotated[tuple[Variance, Variance], Field(strict=False)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.variance[0] > self.variance[1]:
            raise ValueError("variance: the least is above the largest")
        return self


class Neurons(_Public):
    """So many neurons of a feed-forward network whose |x| before the activation stays within one bound.

    They are next to each other: whoever imports a model puts its neurons in order of their bounds.
    """

    count: Annotated[int, Field(ge=1, le=262_144)]
    bound: Bound


class ScoreRange(_Public):
    """Attention scores: the largest size. Less the score of a text's first token: the largest, how far the least lies
    below 0, and how far a row's least lies below its largest; padding as a key does not count."""

    size: Bound
    above: Bound
    below: Bound
    spread: Bound


class LayerRanges(_Public):
    """Largest |x| in one block, and its two LayerNorms in the order in which they come."""

    qkv: Bound
    scores: ScoreRange
    context: Bound
    attention: Bound  # what the projection after it adds to the residual stream
    activation: Bound
    neurons: Annotated[tuple[Neurons, ...], Field(max_length=64, strict=False)] = ()  # all of them, or none known
    ffn: Bound  # what the feed-forward network adds
    norm1: NormRange
    norm2: NormRange


class Ranges(_Public):
    """What calibration found, margins included."""

    embeddings: Bound  # of the sum of the tables' rows
    embedding_norm: NormRange | None = None
    embedding_projection: Bound | None = None
    layers: Annotated[tuple[LayerRanges, ...], Field(min_length=1, max_length=512, strict=False)]
    final: NormRange | None = None  # of the LayerNorm after the last block, where blocks begin with theirs
    pooler: Bound | None = None
    logits: Bound | None = None


class Description(_Public):
    """A model as everybody may know it."""

    format: Format = FORMAT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    architecture: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
    preset: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    embeddings: Literal["secret", "public"] = "secret"
    dimensions: Dimensions
    ranges: Ranges
    functions: Annotated[tuple[Fit, ...], Field(max_length=4_096, strict=False)] = ()
    choices: Annotated[tuple[Choices, ...], Field(max_length=512, strict=False)] = ()  # by layer, or the preset's own
    # `files_digest` of the tokenizer's files, so that who means this description means these files; empty: unknown
    tokenizer: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.ranges.layers) != self.dimensions.layers:
            raise ValueError(f"ranges of {len(self.ranges.layers)} layers for {self.dimensions.layers}")
        for layer in self.ranges.layers:
            if layer.neurons and sum(group.count for group in layer.neurons) != self.dimensions.inner:
                raise ValueError(f"neurons: {self.dimensions.inner} expected in all")
        if self.choices and len(self.choices) != self.dimensions.layers:
            raise ValueError(f"choices of {len(self.choices)} layers for {self.dimensions.layers}")
        return self

    def choices_of(self, layer: int) -> Choices:
        return self.choices[layer] if self.choices else DEFAULT

    @property
    def fits(self) -> Fits:
        return Fits(self.functions)

    def text(self) -> str:
        """As it travels and is stored."""
        return self.model_dump_json()


@lru_cache(maxsize=16)
def parse(text: str) -> Description:
    """Raises BadDescription naming the field, VersionMismatch for a description of another format."""
    if len(text) > LONGEST:
        raise BadDescription(f"a description of {len(text):,} characters: at most {LONGEST:,}")
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise BadDescription("a model's description is not JSON") from None
    if not isinstance(raw, dict):
        raise BadDescription("a model's description is not a JSON object")
    if raw.get("format") != FORMAT:  # its weights would be read as what they are not
        raise VersionMismatch("this model was imported by another version of ditto; import and share it again")
    try:
        return Description.model_validate(raw)
    except ValidationError as error:
        raise BadDescription(explain(error)) from None


def layer_ranges(raw: Any) -> tuple[LayerRanges, ...]:
    """The layers of a description, or of its ranges alone. Raises BadDescription."""
    try:
        return Ranges.model_validate(raw.get("ranges", raw) if isinstance(raw, dict) else raw).layers
    except ValidationError as error:
        raise BadDescription(explain(error)) from None


@lru_cache(maxsize=64)
def digest_of(text: str) -> bytes:
    """The first 16 bytes of SHA-256: by them servers and clients tell that they mean the same description."""
    return hashlib.sha256(text.encode()).digest()[:16]


def required(value: T | None, field: str) -> T:
    """What this architecture cannot do without. Raises BadDescription."""
    if value is None:
        raise BadDescription(f"{field}: missing, and this architecture needs it")
    return value


def explain(error: ValidationError) -> str:
    """The first few fields that are wrong, and why; never the values, which may be long."""
    found = error.errors(include_input=False, include_url=False)
    lines = [f"{'.'.join(map(str, e['loc'])) or 'description'}: {e['msg']}" for e in found[:3]]
    rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(lines) + rest


def round_up(x: float) -> float:
    """x rounded up to three significant digits."""
    return _rounded(x, ROUND_CEILING)


def round_down(x: float) -> float:
    """x rounded down to three significant digits."""
    return _rounded(x, ROUND_FLOOR)


def _rounded(x: float, how: str) -> float:
    # the shortest text of a number, so that 0.3 is not taken for what lies a little above it
    return float(Context(prec=DIGITS, rounding=how).create_decimal(repr(float(x))))

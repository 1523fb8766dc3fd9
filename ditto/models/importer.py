"""A checkpoint becomes a description and encoded weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError

from ditto.engine.plan import Plan
from ditto.errors import BadCheckpoint, DittoError, RangeError, UsageError
from ditto.functions.fit import Fitting
from ditto.models.architecture import Tensors, Texts
from ditto.models.calibrated import NAME as FILE
from ditto.models.calibrated import load_calibrated
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, Ranges, explain
from ditto.models.ranges import Seen
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Text
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.ring.fixedpoint import encode

SMALLEST = 16  # tokens: enough to compile every step, fit every function and name every weight


def import_model(
    checkpoint: Checkpoint,
    name: str,
    texts: Sequence[Text],
    preset: str = "ditto",
    embeddings: str = "secret",
) -> tuple[Description, Tensors]:
    """Calibrate on texts (or pairs) and encode the weights: (description, ring integers by the program's names)."""
    description, arranged = describe(checkpoint, name, batches_of(checkpoint, texts), preset, embeddings)
    return description, encode_weights(description, arranged.tensors)


def batches_of(checkpoint: Checkpoint, texts: Sequence[Text]) -> list[Texts]:
    """Texts (or pairs) as calibration takes them. Raises UsageError where there are none, BadCheckpoint for a tokenizer
    that is another model's."""
    texts = [text for text in texts if not isinstance(text, str) or text.strip()]
    if not texts:
        raise UsageError("calibration needs at least one line of text")
    tokenizer = checkpoint.tokenizer()
    tokenizer.check(checkpoint.dimensions.vocabulary)
    return checkpoint.architecture.batches(tokenizer, texts, checkpoint.dimensions)


def import_calibrated(
    checkpoint: Checkpoint, name: str, preset: str | None = None, embeddings: str = "secret"
) -> tuple[Description, Tensors]:
    """The same with the ranges that the checkpoint brings (`with_its_ranges`)."""
    description = with_its_ranges(checkpoint, name, preset, embeddings)
    return description, encode_weights(description, checkpoint.tensors)


def with_its_ranges(
    checkpoint: Checkpoint, name: str, preset: str | None = None, embeddings: str = "secret"
) -> Description:
    """The description by the ranges that the checkpoint brings, which are for one preset (`ditto.models.calibrated`).

    Raises UsageError for another preset, BadCheckpoint for ranges that are not these weights'.
    """
    found = load_calibrated(checkpoint)
    if preset not in (None, found.preset):
        raise UsageError(f"this checkpoint was made for preset {found.preset}; for {preset} name texts to calibrate on")
    # checked as a whole again: the name is somebody's
    changed = found.model_dump() | {"name": name, "embeddings": embeddings}
    try:
        return fitted(Description.model_validate(changed))
    except DittoError:
        raise
    except Exception as error:  # ranges that nothing was calibrated to: of whatever class, it is the file's fault
        raise BadCheckpoint(f"{FILE}: ranges that do not compile: {type(error).__name__}: {error}") from error


def describe(
    checkpoint: Checkpoint, name: str, batches: list[Texts], preset: str = "ditto", embeddings: str = "secret"
) -> tuple[Description, Checkpoint]:
    """Calibrate on token batches: the public description, and the checkpoint with its neurons in the order that the
    description speaks of. Only weights in that order may be encoded for it.

    Raises RangeError, naming layer and operation, where a range does not fit the preset's types, UsageError for a
    preset that the architecture has no use for.
    """
    _check_preset(checkpoint, preset, embeddings)
    return describe_seen(checkpoint, name, seen_of(checkpoint, batches), preset, embeddings)


def _check_preset(checkpoint: Checkpoint, preset: str, embeddings: str) -> None:
    if embeddings not in ("secret", "public"):
        raise UsageError(f"embeddings {embeddings!r}: secret or public")
    if checkpoint.dimensions.activation == "quad" and not preset_of(preset).style.quad:
        raise UsageError(f"this checkpoint was trained with Quad in the place of GELU, which preset {preset} has not")


def seen_of(checkpoint: Checkpoint, batches: Sequence[Texts]) -> Seen:
    """What the plaintext model shows of itself over token batches, padding included. Raises UsageError for none."""
    if not batches:
        raise UsageError("calibration needs at least one text")
    seen = Seen()
    with torch.inference_mode():
        for batch in batches:
            checkpoint.architecture.floats(checkpoint.tensors, checkpoint.dimensions, batch, seen)
    return seen


def describe_seen(
    checkpoint: Checkpoint, name: str, seen: Seen, preset: str = "ditto", embeddings: str = "secret"
) -> tuple[Description, Checkpoint]:
    """As `describe` has it, by what was seen already."""
    _check_preset(checkpoint, preset, embeddings)
    try:
        ranges, tensors = checkpoint.architecture.calibrate(checkpoint.tensors, checkpoint.dimensions, seen)
    except ValidationError as error:  # infinite, or beyond what a description takes
        raise RangeError(f"calibration: {explain(error)}") from None
    return described(checkpoint, name, ranges, preset, embeddings), replace(checkpoint, tensors=tensors)


def described(
    checkpoint: Checkpoint,
    name: str,
    ranges: Ranges,
    preset: str,
    embeddings: str = "secret",
) -> Description:
    """The description by ranges that are known."""
    return fitted(
        Description(
            name=name,
            architecture=checkpoint.class_name,
            preset=preset_of(preset).name,
            embeddings=cast(Literal["secret", "public"], embeddings),
            dimensions=checkpoint.dimensions,
            ranges=ranges,
        )
    )


def fitted(draft: Description) -> Description:
    """The description with the coefficients of every function that its programs ask for; those it has are kept."""
    fits = Fitting(draft.functions)
    _smallest(draft, fits)
    return draft.model_copy(update={"functions": fits.all()})


def with_preset(description: Description, preset: str) -> Description:
    """The same model for another preset: weights, in the same order, are encoded anew, ranges stay."""
    return fitted(description.model_copy(update={"preset": preset_of(preset).name, "functions": ()}))


def with_choices(description: Description, choices: tuple[Choices, ...]) -> Description:
    """The same model with one set of choices for each layer: weights, in the same order, are encoded anew."""
    return fitted(description.model_copy(update={"choices": choices}))


def _smallest(description: Description, fits: Fitting | None = None) -> Any:
    plan = Plan(1, min(SMALLEST, description.dimensions.positions))
    return architecture_of(description.architecture).compile(description, plan, fits=fits)


def encode_weights(description: Description, tensors: Tensors) -> Tensors:
    """Fixed-point weights by the program's names. Raises RangeError for one that does not fit its type."""
    real = architecture_of(description.architecture).weights(description, tensors)
    encoded = {}
    for name, wire in _smallest(description).weights.items():
        try:
            encoded[name] = encode(real[name], wire.ring, wire.frac)
        except OverflowError as error:
            raise RangeError(f"weight {name}: {error}") from error
    return encoded

"""A checkpoint becomes a model, and step by step a cheaper one; each step is switched on by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ditto.errors import UsageError
from ditto.models.architecture import Tensors
from ditto.models.calibration import Assessment, Calibration, describe_calibrated
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description
from ditto.models.importer import with_choices
from ditto.planning.import_report import Made
from ditto.presets.choices import Choices

Choose = Callable[[Description, Checkpoint], tuple[Choices, ...]]


class Imported(NamedTuple):
    """The model, the checkpoint in its order, and what each step left, the last of which it is."""

    description: Description
    encoded: Tensors
    checkpoint: Checkpoint
    steps: tuple[Made, ...]
    assessment: Assessment | None  # of the calibration's texts


def post_train(
    checkpoint: Checkpoint,
    name: str,
    calibration: Calibration | None,
    preset: str = "ditto",
    embeddings: str = "secret",
    choose: Choose | None = None,
    ready: Description | None = None,
) -> Imported:
    """By a calibration, unless `ready` says what the checkpoint's ranges are, then whatever is asked for: `choose`
    decides what the preset leaves open."""
    if ready:
        description, arranged, assessment = ready, checkpoint, None
    else:
        if calibration is None:
            raise UsageError("calibration needs at least one text")
        description, arranged, assessment = describe_calibrated(checkpoint, name, calibration, preset, embeddings)
    steps = [Made("calibration", description, arranged)]
    if choose is not None:
        description = with_choices(description, choose(description, arranged))
        steps.append(Made("choices", description, arranged))
    return Imported(description, steps[-1].encoded, arranged, tuple(steps), assessment)

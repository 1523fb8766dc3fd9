"""A checkpoint becomes a model that is stored here, ready to be shared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.errors import UsageError
from ditto.models import import_calibrated, import_model, load_checkpoint
from ditto.models.calibrated import is_calibrated
from ditto.names import check_name

if TYPE_CHECKING:
    from ditto.api.answers import Text
    from ditto.models import Description
    from ditto.models.architecture import Tensors


def import_checkpoint(
    directory: Path,
    name: str | None,
    calibrate: Iterable[Text] | None,
    preset: str | None,
    embeddings: str,
    models: Path,
) -> tuple[Description, Tensors]:
    """The description and the encoded weights, which are also noted in `models`."""
    known = check_name(name or directory.resolve().name)
    if calibrate is None and not is_calibrated(directory):
        raise UsageError(f"{directory} brings no calibrated ranges: give texts to calibrate on")
    checkpoint = load_checkpoint(directory)
    if calibrate is None:
        description, weights = import_calibrated(checkpoint, known, preset, embeddings)
    else:
        texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
        description, weights = import_model(checkpoint, known, texts, preset or "ditto", embeddings)
    store.save(description, weights, directory, models)
    return description, weights

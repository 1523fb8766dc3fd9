"""A checkpoint becomes a model that is stored here, ready to be shared."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.errors import CalibrationWarning, UsageError
from ditto.models import encode_weights, import_calibrated, load_checkpoint
from ditto.models.advice import check_directory
from ditto.models.calibrated import is_calibrated
from ditto.models.calibration import calibrate as calibrated
from ditto.models.calibration import describe_calibrated
from ditto.names import check_name

if TYPE_CHECKING:
    from ditto.api.answers import Text
    from ditto.client.client import Client


def import_checkpoint(
    directory: Path, name: str | None, calibrate: Iterable[Text] | None, preset: str | None, embeddings: str,
    models: Path, hard_texts: bool = True,
) -> store.StoredModel:  # fmt: skip
    """Calibrated on texts (and the hard ones that come with ditto), or by the ranges that it brings, and written down
    in `models`. Warns of few, short or narrow texts (CalibrationWarning)."""
    known = check_name(name or directory.resolve().name)
    check_directory(directory)
    if calibrate is None and not is_calibrated(directory):
        raise UsageError(f"{directory} brings no calibrated ranges: give texts to calibrate on")
    checkpoint = load_checkpoint(directory)
    if calibrate is None:
        description, weights = import_calibrated(checkpoint, known, preset, embeddings)
    else:
        texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
        calibration = calibrated(checkpoint, texts, hard_texts)
        description, arranged, found = describe_calibrated(
            checkpoint, known, calibration, preset or "ditto", embeddings
        )
        weights = encode_weights(description, arranged.tensors)
        for text in found.warnings():
            warnings.warn(text, CalibrationWarning, stacklevel=3)
    return store.save(description, weights, directory, models)


def share(client: Client, stored: store.StoredModel) -> None:
    """Send each party its share of an imported model's weights, and the coordinator what is public of it."""
    client.share_model(stored.description, stored.weights(), stored.published())

"""A checkpoint becomes a model that is stored here, ready to be shared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.errors import UsageError
from ditto.models import import_calibrated, import_model, load_checkpoint
from ditto.models.advice import check_directory
from ditto.models.calibrated import is_calibrated
from ditto.names import check_name

if TYPE_CHECKING:
    from ditto.api.answers import Text
    from ditto.client.client import Client


def import_checkpoint(
    directory: Path, name: str | None, calibrate: Iterable[Text] | None, preset: str | None, embeddings: str,
    models: Path,
) -> store.StoredModel:  # fmt: skip
    """Calibrated on texts, or by the ranges that it brings, and written down in `models`."""
    known = check_name(name or directory.resolve().name)
    check_directory(directory)
    if calibrate is None and not is_calibrated(directory):
        raise UsageError(f"{directory} brings no calibrated ranges: give texts to calibrate on")
    checkpoint = load_checkpoint(directory)
    if calibrate is None:
        description, weights = import_calibrated(checkpoint, known, preset, embeddings)
    else:
        texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
        description, weights = import_model(checkpoint, known, texts, preset or "ditto", embeddings)
    return store.save(description, weights, directory, models)


def share(client: Client, stored: store.StoredModel) -> None:
    """Send each party its share of an imported model's weights, and the coordinator what is public of it."""
    client.share_model(stored.description, stored.weights(), stored.published())

"""The model that comes with ditto: an English sentiment classifier (docs/sentiment-model.md)."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from ditto.errors import BadCheckpoint

SENTIMENT = "sentiment"


def sentiment_directory() -> Path:
    """Its checkpoint: configuration, int8 tensors, tokenizer, and ditto's description. Raises BadCheckpoint where the
    installation has it not as files."""
    path = Path(str(importlib.resources.files("ditto"))) / "data" / SENTIMENT
    if not path.is_dir():
        raise BadCheckpoint(f"{path}: the shipped model is not there; was ditto installed without its data?")
    return path

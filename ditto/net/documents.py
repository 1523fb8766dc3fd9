"""YAML files, as users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ditto.errors import ConfigError

MAX_DEPTH = 32
"""Brackets within brackets. The reader's time grows with their square: 1.5 kB of them took it a second."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises ConfigError, also for what only its reader trips over: a date that is none, a
    nesting too deep, a NUL in a path."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The same for a text that stands in `path`."""
    try:
        raw: Any = yaml.load(text, _ShallowLoader)
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not YAML: nested too deeply") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path} is not a mapping of names")
    return raw


class _ShallowLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a deep nesting before it is read."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        super().fetch_flow_collection_start(TokenClass)

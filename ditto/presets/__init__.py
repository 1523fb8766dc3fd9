"""Presets: which types and operations each layer uses. One small file is one recipe."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditto.presets.registry import PRESETS, Preset, preset_of

# Loaded when it is asked for: whoever wants what a description may choose needs no torch (PEP 562).
_WHERE = {
    "PRESETS": "ditto.presets.registry",
    "Preset": "ditto.presets.registry",
    "preset_of": "ditto.presets.registry",
}

__all__ = [
    "PRESETS",
    "Preset",
    "preset_of",
]


if not TYPE_CHECKING:  # a checker knows the names from above, and that there are no others

    def __getattr__(name):
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_WHERE[name]), name)
        return found

"""Presets: which types and operations each layer uses. One small file is one recipe."""

from typing import TYPE_CHECKING

from ditto.lazy import loader

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
    __getattr__ = loader(__name__, _WHERE)

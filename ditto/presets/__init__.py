"""Presets: which types and operations each layer uses. One small file is one recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ditto.errors import UsageError
from ditto.presets import ditto, ditto_icml24, mpcformer, puma, secformer
from ditto.presets.style import Style


@dataclass(frozen=True)
class Preset:
    """A recipe by name; `distilled` says that it changes functions, so that a model has to be trained for it."""

    name: str
    summary: str
    style: Style
    distilled: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("ditto", "this project: one-opening functions, narrow rings", ditto.STYLE),
        Preset("ditto-icml24", "Ditto as published: FXP32 and FXP64, Quad GELU", ditto_icml24.STYLE, True),
        Preset("ditto-icml24-exact", "the same with PUMA's GELU", ditto_icml24.EXACT),
        Preset("puma", "PUMA: FXP64, piecewise GELU, exact softmax", puma.STYLE),
        Preset("mpcformer", "MPCFormer: FXP64, Quad GELU, 2Quad softmax", mpcformer.STYLE, True),
        Preset("secformer", "SecFormer: Fourier GELU, 2Quad softmax, Goldschmidt", secformer.STYLE, True),
    )
}


def preset_of(name: str) -> Preset:
    """Raises UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}: one of {', '.join(PRESETS)}")
    return PRESETS[name]

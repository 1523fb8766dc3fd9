"""Every preset by its name. A new one is a file and a line here."""

from __future__ import annotations

from dataclasses import dataclass

from ditto.errors import UsageError
from ditto.presets import ditto, ditto_icml24, mpcformer, puma, secformer
from ditto.presets.style import Style


@dataclass(frozen=True)
class Preset:
    """A recipe by name.

    `ulp`: the largest difference between MPC and the plain interpreter on a BERT of two layers, in units of the last
    place of the hidden states (stochastic truncation, carried through two layers; twice what eight runs showed).
    `distilled`: it changes functions, so a model has to be trained for it.
    """

    name: str
    summary: str
    style: Style
    ulp: int
    distilled: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("ditto", "this project: one-opening functions, narrow rings", ditto.STYLE, 12),
        Preset("ditto-icml24", "Ditto as published: FXP32 and FXP64, Quad GELU", ditto_icml24.STYLE, 12, True),
        Preset("ditto-icml24-exact", "the same with PUMA's GELU", ditto_icml24.EXACT, 16),
        Preset("puma", "PUMA: FXP64, piecewise GELU, exact softmax", puma.STYLE, 160),
        Preset("mpcformer", "MPCFormer: (64, 16), Quad GELU, 2Quad softmax", mpcformer.STYLE, 200, True),
        Preset("secformer", "SecFormer: (64, 16), Fourier GELU, 2Quad softmax", secformer.STYLE, 150, True),
    )
}


def preset_of(name: str) -> Preset:
    """Raises UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}: one of {', '.join(PRESETS)}")
    return PRESETS[name]

"""This project's best: one-opening functions, narrow rings, an approximate maximum."""

from ditto.presets.one_opening import OneOpening

STYLE = OneOpening()

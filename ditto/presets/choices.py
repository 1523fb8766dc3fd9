"""What a preset leaves open, layer by layer: alternatives of one function that differ in rounds, bytes and error.

Choices are public, since every server compiles by them, and few: a model's description holds at most one set for each
layer. `None` is what the preset does by itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Choices(BaseModel):
    """Of one layer. Errors as stated where the functions are defined.

    `exponential`: of softmax, from 8 dealt bytes an entry or from 7 (`ditto.functions.softmax.ExponentialType`).
    `used`: how softmax finds which buckets have a score above them: by counts and tables, or by parities of bits, with
    a fourth of the bytes and one more round; or not at all, since a bound stands for the maximum: two rounds fewer
    than tables, where scores and the number of keys allow it ("no maximum"), and with more bits where scores rise too
    far for that ("two windows"). Where they do not, it is as if nothing were chosen.
    `deviation`: of LayerNorm's 1 / sqrt(v) (`ditto.functions.inverse`): by a tree of keys, in one round whatever the
    range is, for hardly any bytes (`ditto.ops.tree`); or from one table of lines where that has at most 2^13 entries
    (large) or 2^10 (medium), else, and with small, from several, which take one more round.
    `activation`: of neurons by the range of each, or by that of the widest.
    `gelu`: of its result 8, 7 or 6 fraction bits, from harmonics on 24, 20 or 16 bits, its fits held to about such a
    unit (`ditto.functions.gelu.TYPES`).
    `product`: how GELU's result comes to the next product: on few bits, which one more opening extends, or straight,
    its even part on the product's own ring, x/2 by a product of what the first projection read with a matrix of its
    own: a round and two bytes of each party fewer for each number, for four more from the dealer and each harmonic.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    exponential: Literal["precise", "narrow"] | None = None
    used: Literal["bits", "table", "no maximum", "two windows"] | None = None
    deviation: Literal["large", "medium", "small", "tree"] | None = None
    activation: Literal["by neuron", "as one"] | None = None
    gelu: Literal["precise", "narrow", "coarse"] | None = None
    product: Literal["extended", "straight"] | None = None


DEFAULT = Choices()

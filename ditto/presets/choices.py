"""What a preset leaves open, layer by layer: alternatives of one function that differ in rounds, bytes and error.

Choices are public, since every server compiles by them, and few: a model's description holds at most one set for each
layer. `None` is what the preset does by itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Choices(BaseModel):
    """Of one layer. Errors as stated where the functions are defined.

    `reciprocal`: of softmax's 1 / sum. 0: tables of 2^7 entries and two Newton steps, to about 2^-12. Else tables of so
    many index bits n for five octaves each and one step: three rounds fewer, to 2^(2 (5 - n)).
    `exponential`: of softmax, from 8 dealt bytes an entry or from 7 (`ditto.functions.softmax.ExponentialType`).
    `used`: how softmax finds which buckets have a score above them: by counts and tables, or by parities of bits, with
    a fourth of the bytes and one more round; or not at all, since a bound stands for the maximum: three rounds fewer
    than tables, where scores and the number of keys allow it. Where they do not, it is as if nothing were chosen.
    `deviation`: of LayerNorm's 1 / sqrt(v) (`ditto.functions.layernorm.Root`). By one table of up to 2^14 entries,
    where the range has at most 8 octaves; or by a Newton step from one first guess, one more round, or from joined
    ones, two more.
    `activation`: of neurons by the range of each, or by that of the widest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reciprocal: Literal[0, 8, 9, 10, 11] | None = None
    exponential: Literal["precise", "narrow"] | None = None
    used: Literal["bits", "table", "no maximum"] | None = None
    deviation: Literal["one table", "one guess", "joined guesses"] | None = None
    activation: Literal["by neuron", "as one"] | None = None


DEFAULT = Choices()

"""What a preset leaves open, layer by layer: alternatives of one function that differ in rounds, bytes and error.

Choices are public, since every server compiles by them, and few: a model's description holds at most one set for each
layer. `None` is what the preset does by itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Choices(BaseModel):
    """Of one layer. Errors as derived where the functions are defined.

    `reciprocal`: of softmax's 1 / sum. 0: tables of 2^7 entries and two Newton steps, to about 2^-12. Else tables of so
    many index bits n for five octaves each and one step: three rounds fewer, to 2^(2 (5 - n)).
    `exponential`: the binary digits of softmax's exponentials that are right, from 7 or 8 bytes each (10 digits
    leave 38 bits of the ring, two fewer than the values' product takes).
    `deviation`: of LayerNorm's 1 / sqrt(v). One table of up to 2^14 entries, one round, to 2^-9; or several of 2^10
    joined and a Newton step, to 2^-11, for any range.
    `activation`: of neurons by the range of each, or by that of the widest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reciprocal: Literal[0, 8, 9, 10, 11] | None = None
    exponential: Literal[12, 16] | None = None
    deviation: Literal["one table", "joined tables"] | None = None
    activation: Literal["by neuron", "as one"] | None = None


DEFAULT = Choices()

"""What a job computes, as far as everybody may know it."""

from __future__ import annotations

from dataclasses import dataclass

HOLD_MB = 256
WHOLE_MB = 1 << 20  # with it a program is in one part, whatever its size: for who compiles it and runs it on no party


@dataclass(frozen=True)
class Plan:
    """Texts in the batch, their padded length, and for text generation the most tokens that may follow.

    A job has one stage for the texts and one for each generated token but the last, whose successor nobody asks for.
    With `argmax` the answer is the most likely token instead of all logits. From stage `narrow_from` on (never: 0)
    a preset may use narrower types. `every` asks for the logits at every position of the texts, which scores them.
    `guard`: the answer says which layers had values outside their calibrated ranges. `hold_mb`: MB of correlations
    that a party holds at once; what needs more is computed in parts (ditto.engine.parts). The servers' configurations
    say how many.
    """

    batch: int
    seq: int
    tokens: int = 1
    argmax: bool = False
    narrow_from: int = 0
    every: bool = False
    guard: bool = False
    hold_mb: int = HOLD_MB

    @property
    def hold(self) -> int:
        return self.hold_mb << 20

    @property
    def stages(self) -> int:
        return max(1, self.tokens)

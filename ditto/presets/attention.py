"""Types of `ditto`'s attention after its scores: with a maximum or without, in all stages of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import multiply
from ditto.functions.inverse import Part
from ditto.functions.layernorm import RESULT
from ditto.functions.softmax import CARRIER, DIGITS, LOG_UNITS, NARROW, PRECISE, PUBLIC, ExponentialType, ScoreType
from ditto.presets.choices import Choices
from ditto.presets.style import AttentionBounds, Scores, Stage
from ditto.ring.exact import ceil_log2, floor_log2

CUT = 8  # bits of the ring that the truncation before an addition to the residual stream takes
E_FRAC = 13  # fraction bits of E less a maximum: 7 digits of what a row's largest is at least
LEAST_DIGITS = 8  # of a row's least E, where the values' ring is given
LONGEST = 1024  # keys that a causal attention's types hold at least: they are the same for all stages
EXPONENTIALS = {"precise": PRECISE, "narrow": NARROW}


@dataclass(frozen=True)
class Attention:
    """Types of the attention after its scores.

    `values`: ring of values and of the context before its truncation; `exponential`: its type; `inverse`: fraction bits
    of 1 / sum, at most; `product`: ring of the context times 1 / sum (0: what its result needs); `by_bits`: how the
    maximum's buckets are asked (None: by what it saves).
    """

    values: int = 36
    exponential: ExponentialType = PRECISE
    inverse: int = 64
    product: int = 0
    by_bits: bool | None = None

    @classmethod
    def of(cls, stage: Stage) -> Attention:
        if not stage.causal:
            return cls()
        return cls(inverse=16, exponential=NARROW if stage.narrow else PRECISE)

    def chosen(self, choices: Choices) -> Attention:
        return replace(
            self,
            exponential=EXPONENTIALS[choices.exponential] if choices.exponential else self.exponential,
            by_bits=choices.used == "bits" if choices.used in ("bits", "table") else self.by_bits,
        )

    def filled(self, bounds: AttentionBounds, stage: Stage, keys: int, circle: ScoreType) -> Attention:
        """The same with values on the ring that E_FRAC takes, if that is less; in a causal attention on that of all
        stages."""
        if stage.causal:
            return self
        return replace(self, values=min(self.values, E_FRAC + whole_bits(most_of(circle, keys, bounds))))

    def without_maximum(
        self, bounds: AttentionBounds, stage: Stage, keys: int, own: ScoreType
    ) -> tuple[Attention, ScoreType] | None:
        """The same where a bound stands for the maximum of the scores; None where scores or keys have no room for it.

        1. The circle is that of `own`, by which keys and biases have their type.
        2. Values of a causal attention are as wide as every stage has them, others as E needs.
        3. E would fill that ring by the bound of values, too, its public factor keeping PUBLIC bits.
        """
        try:
            circle = ScoreType.without_maximum(bounds.scores.above, bounds.scores.below, lowered=stage.later)
        except RangeError:
            return None
        if circle.log_range > own.log_range:  # 1
            return None
        circle = replace(circle, log_range=own.log_range)
        whole = whole_bits(most_of(circle, keys, bounds))
        values = DIGITS + circle.octaves + whole
        if stage.causal:  # 2
            if LEAST_DIGITS + circle.octaves + whole > self.values:
                return None
            values = self.values
        dealt = self.exponential.resolving(circle.octaves).holding(whole_bits(circle.sums(keys)[1] * bounds.qkv))
        if dealt.public_frac < PUBLIC:  # 3
            return None
        return replace(self, values=values, exponential=dealt), circle

    def in_two_windows(
        self, bounds: AttentionBounds, stage: Stage, keys: int, own: ScoreType
    ) -> tuple[Attention, ScoreType] | None:
        """The same where scores rise further: E on the ring that this takes, 1 / sum in two parts, and steps of the
        exponential as long as the circle and CARRIER bits allow. None where no ring has room for it."""
        for log_unit in LOG_UNITS:
            try:
                circle = ScoreType.without_maximum(*bounds.scores[1:3], stage.later, log_unit, parts=2)
            except RangeError:
                continue
            whole = whole_bits(most_of(circle, keys, bounds))
            dealt = self.exponential.filling(circle.octaves, log_unit, whole)
            if dealt is not None and circle.log_range <= own.log_range:
                values = DIGITS + circle.octaves + whole
                return replace(self, values=values, exponential=dealt), replace(circle, log_range=own.log_range)
        return None


def attention_types(choices: Choices, bounds: AttentionBounds, stage: Stage, keys: int) -> tuple[Attention, ScoreType]:
    """Types of an attention to so many keys, and of its scores: without a maximum where that has room."""
    types, own = Attention.of(stage).chosen(choices), score_type(bounds.scores, stage)
    used, found = choices.used, None
    if used == "two windows" and stage.causal:
        found = _alike(choices, bounds, stage, keys)
    if used in (None, "no maximum", "two windows"):
        found = found or types.without_maximum(bounds, stage, keys, own)
    if used == "two windows" and not stage.causal:
        found = found or types.in_two_windows(bounds, stage, keys, own)
    return found or (types.filled(bounds, stage, keys, own), own)


def _alike(choices: Choices, bounds: AttentionBounds, stage: Stage, keys: int) -> tuple[Attention, ScoreType] | None:
    """In two windows, if all stages of a causal attention have to and can: their values have one type."""
    keys, found = max(keys, LONGEST), []
    for each in (replace(stage, later=later, narrow=False) for later in (False, True)):
        types, own = Attention.of(each).chosen(choices), score_type(bounds.scores, each)
        found.append((types.without_maximum(bounds, each, keys, own), types.in_two_windows(bounds, each, keys, own)))
    one, two = zip(*found, strict=True)
    if all(one) or not all(two):
        return None
    types, own = Attention.of(stage).chosen(choices), score_type(bounds.scores, stage)
    return types.in_two_windows(bounds, stage, keys, own)


def score_type(scores: Scores, stage: Stage) -> ScoreType:
    """Padding's keys are the first one in an encoder and kept from a prompt by causality; later tokens meet them as
    they are."""
    return ScoreType.of(scores.above, scores.below, scores.spread, lowered=stage.later)


def most_of(circle: ScoreType, keys: int, bounds: AttentionBounds) -> float:
    """A context's largest size before its division, by its calibrated bound: what leaves a ring of that size is seen by
    the range guard."""
    return circle.sums(keys)[1] * min(bounds.qkv, bounds.context)


def whole_bits(most: float) -> int:
    """Bits of the values' ring that fraction bits of E do not have, for a context before its division up to `most`."""
    return 2 + CUT + ceil_log2(most)


def divided(b: Builder, context: Wire, parts: Sequence[Part], bounds: AttentionBounds, ring: int) -> Wire:
    """An opened context times 1 / sum, whose parts are opened, on `ring`: each part times those bits of the context
    that matter for its sums.

    1. Low bits go, beyond DIGITS of the least such sum, and what the product has no room for.
    2. High bits go that no such sum reaches: what another row's context has there is multiplied by 0."""
    terms = []
    for part in parts:
        low, high = part.limits
        digits = min(DIGITS - floor_log2(low), CARRIER - ring + RESULT.frac - part.y.frac)
        shift = max(0, context.frac - digits)  # 1
        reached = ceil_log2(high * bounds.qkv) + context.frac - shift + 3  # 2
        bits, size = context.ring - shift, min(bounds.qkv, bounds.context)
        whole = part is parts[0]  # and so no other row's context is in it, but one that is 0
        x = b.high(context, shift, bits if whole else min(bits, reached), high * size, watched=whole)
        cut = x.frac + part.y.frac - RESULT.frac
        terms.append(b.truncate(multiply(b, x, part.y, ring + cut, bound=bounds.context), cut, ring))
    return b.add(*terms, bound=bounds.context)

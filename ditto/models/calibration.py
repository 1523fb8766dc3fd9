"""Calibration of a model that somebody will ask: on its owner's texts, wider by what they say of texts to come, and on
the hard texts that come with ditto. What those texts are is said in numbers, and where they are few, in a warning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from ditto.errors import RangeError
from ditto.models.architecture import Texts
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description
from ditto.models.hard_texts import hard_batches
from ditto.models.held_out import FEWEST, HeldOut, held_out, learnt
from ditto.models.importer import batches_of, describe_seen, seen_of
from ditto.models.ranges import ACTIVATION_MARGIN, Seen
from ditto.models.tokenizer import Text, Tokenizer
from ditto.models.vocabulary import kinds_met, kinds_of

# Hard texts are there for their extremes, so they count as they are: without the margin that typical texts get. (Of
# variances 2 / 1.5 is left.)
HARD_PART = 1 / ACTIVATION_MARGIN
MANY = 100  # texts, of which the next one exceeds all with a chance of 1 % at each place
SHORT, NARROW = 0.25, 0.5  # parts of the longest input, and of the kinds of tokens
UNCUT = 1 << 24  # tokens


@dataclass(frozen=True)
class Assessment:
    """Calibration's texts in numbers. Tokens count special ones; `vocabulary` is the part of the vocabulary that is of
    the kinds met; `hard` counts what was added of ditto's own, 0 where its ranges did not `fit`."""

    texts: int
    longest: int
    median: int
    positions: int
    kinds: tuple[str, ...]
    missing: tuple[str, ...]
    vocabulary: float
    hard: int
    held_out: HeldOut | None
    fit: bool = True

    def document(self) -> dict[str, Any]:
        """For --json and reports."""
        return asdict(self) | {"warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """In words; none of texts that are many, long and varied."""
        found = []
        if not self.fit:
            found.append(
                "the ranges of ditto's hard texts do not fit this preset's types: calibrated without them and without "
                "learnt margins"
            )
        wrong, numbers = [], []
        if self.texts < MANY:
            wrong.append("few")
            numbers.append(f"{self.texts} of them ({MANY} or more are better)")
        if self.longest < SHORT * self.positions:
            wrong.append("short")
            numbers.append(
                f"at most {self.longest} tokens, {self.median} in the middle (the model takes {self.positions})"
            )
        met = len(self.kinds)
        if met < NARROW * (met + len(self.missing)):
            wrong.append("narrow")
            numbers.append(
                f"{met} of {met + len(self.missing)} kinds of tokens, {self.vocabulary:.0%} of the vocabulary"
            )
        if wrong:
            rest = f"; the {self.hard} texts that come with ditto stand in for others" if self.hard else ""
            found.append(f"the texts to calibrate on are {', '.join(wrong)}: {'; '.join(numbers)}{rest}")
        if self.held_out and self.held_out.outside > 0 and self.texts >= FEWEST:
            h = self.held_out
            found.append(
                f"{h.outside:.1%} of the texts, held out, leave the ranges of the others, whose largest values they "
                f"exceed by up to {h.most:.2f} times ({h.place}); expect as many of later ones, and more of other kinds"
            )
        return found


@dataclass(frozen=True)
class Calibration:
    """What the plaintext model showed: on all texts, with learnt margins; on the owner's `own`, whose `batches` are
    here, without."""

    seen: Seen
    own: Seen
    batches: list[Texts]
    assessment: Assessment


def calibrate(
    checkpoint: Checkpoint, texts: Sequence[Text], hard: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:  # fmt: skip
    """On texts (or pairs), and ditto's hard ones if wanted. `progress` hears how many of all texts are done. Raises as
    `batches_of` does."""
    batches = batches_of(checkpoint, texts)
    tokenizer, own, seen = checkpoint.tokenizer(), Seen(), Seen()
    more = hard_batches(checkpoint, tokenizer, texts) if hard else []
    of, values = len(batches) + len(more), []
    for done, batch in enumerate(batches):
        progress(done, of)
        one = seen_of(checkpoint, [batch])
        values.append(one.values())
        own.add(one)
    seen.add(own)
    for done, batch in enumerate(more, len(batches)):
        progress(done, of)
        seen.add(seen_of(checkpoint, [batch]), HARD_PART)
    progress(of, of)
    seen.widen(learnt(values))
    found = _assessed(checkpoint, tokenizer, [t for t in texts if not isinstance(t, str) or t.strip()])
    return Calibration(seen, own, batches, replace(found, hard=len(more), held_out=held_out(values)))


def _assessed(checkpoint: Checkpoint, tokenizer: Tokenizer, texts: Sequence[Text]) -> Assessment:
    rows = [ids for ids, _ in tokenizer.cut(texts, UNCUT)]
    lengths, kinds = [len(row) for row in rows], kinds_of(tokenizer)
    met = kinds_met(kinds, (i for row in rows for i in row))
    return Assessment(
        texts=len(texts),
        longest=max(lengths),
        median=round(median(lengths)),
        positions=checkpoint.dimensions.positions,
        kinds=tuple(sorted(met)),
        missing=tuple(sorted(set(kinds.values()) - met)),
        vocabulary=sum(kind in met for kind in kinds.values()) / max(1, len(kinds)),
        hard=0,
        held_out=None,
    )


def describe_calibrated(
    checkpoint: Checkpoint, name: str, calibration: Calibration, preset: str = "ditto", embeddings: str = "secret"
) -> tuple[Description, Checkpoint, Assessment]:
    """As `describe` has it. Where the wider ranges do not fit the preset's types, those of the owner's texts alone, by
    the usual margins, as the assessment then says."""
    try:
        return *describe_seen(checkpoint, name, calibration.seen, preset, embeddings), calibration.assessment
    except RangeError:
        found = describe_seen(checkpoint, name, calibration.own, preset, embeddings)
        return *found, replace(calibration.assessment, hard=0, fit=False)

"""Texts that come with ditto and that a calibration hardly has: digits, code, scripts, repetition, what is long."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from ditto.models.architecture import Answer, Texts
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Dimensions
from ditto.models.tokenizer import Text, Tokenizer, padded, padded_width

MOST_WORK = 2e12  # operations of the plaintext model on all of them: some 40 s of one core
CHARACTERS = 12  # of a token at most, about: so many characters are longer than the model takes
PROSE = "prose"


@cache
def hard_texts() -> dict[str, tuple[str, ...]]:
    """The short ones (up to a paragraph), by kind."""
    path = importlib.resources.files("ditto") / "data" / "hard_texts.json"
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return {kind: tuple(texts) for kind, texts in found.items()}


def long_texts(tokens: int) -> list[str]:
    """Of the kinds that come long, texts of more than so many tokens, to be cut."""
    kinds = hard_texts()
    prose = kinds[PROSE]
    parts = ("\n".join(prose), "\n".join(reversed(prose)), "\n".join(kinds["code"]), " ".join(kinds["digits"]))
    return [_repeated(part, tokens * CHARACTERS) for part in parts]


def _repeated(text: str, characters: int) -> str:
    return f"{text}\n" * (characters // len(text) + 1)


def hard_batches(checkpoint: Checkpoint, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Texts]:
    """The hard texts for one model: short ones, and long ones of the most tokens that it takes, or of so many that all
    of them stay within MOST_WORK. As pairs, too, where the calibration's `texts` have pairs; alone, where any is."""
    d, architecture = checkpoint.dimensions, checkpoint.architecture
    short = [text for texts in hard_texts().values() for text in texts]
    longest = _longest(d, len(short))
    if architecture.answer is Answer.text:
        return architecture.batches(tokenizer, [*short, *long_texts(longest)[:1]], d)
    long = [*long_texts(longest)]
    rows: list[Any] = []
    if not texts or any(isinstance(text, str) for text in texts):
        rows += [*short, *long]
    if any(isinstance(text, tuple) for text in texts):
        rows += [*zip(short, [*short[1:], short[0]], strict=True), *zip(long, [*short[:2], *long[2:]], strict=True)]
    cut = [row for row in tokenizer.cut(rows, longest) if row[0]]
    return [padded([row], padded_width(len(row[0]), d.positions)) for row in cut]


def _longest(d: Dimensions, short: int) -> int:
    """Tokens of the long ones: the model's positions, halved until the work is bearable."""
    longest = d.positions
    while longest > 64 and 8 * _work(d, longest) + short * _work(d, 32) > MOST_WORK:
        longest //= 2
    return longest


def _work(d: Dimensions, tokens: int) -> float:
    """Operations of a plaintext forward."""
    weights = d.layers * (4 * d.hidden**2 + 2 * d.hidden * d.inner)
    return 2.0 * tokens * weights + 4.0 * d.layers * tokens**2 * d.hidden

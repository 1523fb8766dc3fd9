"""What a model's values say of a text, by its description alone, and by the places of the tokens in the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ditto.models.description import is_multi_label, is_score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ditto.models.description import Dimensions
    from ditto.models.tokenizer import Piece, Text

__all__ = ["Span", "Word", "chosen", "is_multi_label", "is_score", "probabilities", "span", "words"]

THRESHOLD = 0.5  # of a label's probability, where several may be right


def probabilities(logits: ArrayLike, d: Dimensions) -> list[float]:
    """By label: each for itself (sigmoid) where several may be right, else in sum 1 (softmax)."""
    x = np.asarray(logits, dtype=np.float64)
    if is_multi_label(d):
        found: list[float] = np.exp(-np.logaddexp(0.0, -x)).tolist()
        return found
    powers = np.exp(x - x.max())
    found = (powers / powers.sum()).tolist()
    return found


def chosen(likely: Sequence[float], d: Dimensions) -> tuple[str, ...]:
    """The labels that probabilities speak for: the likeliest, or all of at least THRESHOLD."""
    if is_multi_label(d):
        return tuple(label for label, p in zip(d.labels, likely, strict=True) if p >= THRESHOLD)
    return (d.labels[int(np.argmax(likely))],)


class Word(NamedTuple):
    """A word of a text, its label, and how likely that is."""

    text: str
    label: str
    probability: float


class Span(NamedTuple):
    """Characters of a text (none of a special token, or across segments), the tokens that they are, and the logits of
    its beginning and its end."""

    text: str
    first: int
    last: int
    start: float
    end: float


def words(text: Text, pieces: Sequence[Piece], values: Sequence[Sequence[float]], d: Dimensions) -> list[Word]:
    """Of a text's tokens, [tokens, labels]: a word has the label of its first one, as is usual; special tokens have
    none."""
    found = []
    for (segment, word), rows in groupby(enumerate(pieces), key=lambda row: (row[1].segment, row[1].word)):
        tokens = list(rows)
        if segment is None or word is None:
            continue
        at, last = tokens[0][0], tokens[-1][0]
        likely = probabilities(values[at], d)
        best = int(np.argmax(values[at]))
        found.append(Word(_between(text, pieces[at], pieces[last]), d.labels[best], likely[best]))
    return found


def span(text: Text, pieces: Sequence[Piece], values: Sequence[Sequence[float]]) -> Span:
    """Of a text's tokens, [tokens, 2]: the likeliest span that does not end before it starts."""
    starts, ends = zip(*values, strict=True)
    first = max(range(len(starts)), key=lambda i: starts[i] + max(ends[i:]))
    last = first + int(np.argmax(ends[first:]))
    return Span(_between(text, pieces[first], pieces[last]), first, last, starts[first], ends[last])


def _between(text: Text, first: Piece, last: Piece) -> str:
    """The characters from one token to another of the same segment; none for special tokens, or across segments."""
    if first.segment is None or first.segment != last.segment:
        return ""
    segment = text if isinstance(text, str) else text[first.segment]
    return segment[first.start : last.end].strip()

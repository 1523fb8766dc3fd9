"""What a classifier's logits say, by the description alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ditto.models.description import Dimensions

THRESHOLD = 0.5  # of a label's probability, where several may be right


def is_score(d: Dimensions) -> bool:
    """Are the outputs numbers as they are, without labels that one could choose among?"""
    return len(d.labels) == 1 or d.problem_type == "regression"


def is_multi_label(d: Dimensions) -> bool:
    """May several labels be right at once, or none?"""
    return d.problem_type == "multi_label_classification" and not is_score(d)


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

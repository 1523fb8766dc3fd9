"""Accuracy, correlations and their intervals, against values worked out by hand. Takes a second."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditto.errors import EmptyText, UsageError
from ditto.train.metrics import bootstrap, interval, metric, ranks, spearman


def logits(answers: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float() - 0.5


def test_accuracy_and_mcc_of_two_classes() -> None:
    """TP 3, TN 2, FP 1, FN 2: phi = (3 * 2 - 1 * 2) / sqrt(4 * 5 * 3 * 4)."""
    labels = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0])
    found = logits([1, 1, 1, 0, 0, 1, 0, 0], 2)
    assert metric("accuracy", found, labels) == 5 / 8
    assert metric("mcc", found, labels) == pytest.approx(4 / math.sqrt(240))
    assert metric("mcc", -found, labels) == pytest.approx(-4 / math.sqrt(240))
    assert metric("mcc", logits([1] * 8, 2), labels) == 0


def test_mcc_of_three_classes() -> None:
    """3 of 6 right, answers (2, 2, 2), labels (3, 2, 1) by class: (3 * 6 - 12) / sqrt((36 - 12) (36 - 14))."""
    labels, found = torch.tensor([0, 0, 0, 1, 1, 2]), logits([0, 0, 2, 1, 2, 1], 3)
    assert metric("accuracy", found, labels) == 1 / 2
    assert metric("mcc", found, labels) == pytest.approx((3 * 6 - 12) / math.sqrt((36 - 12) * (36 - 14)))


def test_correlations() -> None:
    """x = 1, 2, 3, 4 less 2.5, y = 2, 1, 4, 8 less 3.75: sum x y = 10.5, of squares 5 and 28.75."""
    x, y = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 1, 4, 8])
    assert metric("pearson", x[:, None], y) == pytest.approx(10.5 / math.sqrt(5 * 28.75))
    assert metric("spearman", x, y) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metric("spearman", x, torch.exp(y)) == metric("spearman", x, y)
    assert metric("pearson", x, torch.ones(4)) == metric("spearman", torch.ones(4), y) == 0


def test_ties_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]
    # ranks 0.5, 0.5, 2 and 0, 1, 2 less 1: sum of products 1.5, of squares 1.5 and 2
    assert spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_interval_of_a_rate() -> None:
    """Of a rate p of n: p ± 1.96 sqrt(p (1 - p) / n). A bound estimated by 1,000 resamples has a deviation of
    sqrt(0.025 * 0.975 / 1,000) / 0.0584 = 0.085 of that root: four of them, and a step of 1 / n, are allowed."""
    n, p = 400, 0.75
    right = torch.arange(n) < p * n
    found = logits(right.long().tolist(), 2)
    root = math.sqrt(p * (1 - p) / n)
    low, high = interval("accuracy", found, torch.ones(n))
    allowed = 4 * 0.085 * root + 1 / n
    assert low == pytest.approx(p - 1.96 * root, abs=allowed) and high == pytest.approx(p + 1.96 * root, abs=allowed)
    assert (
        interval("accuracy", found, torch.ones(n)) == (low, high) != interval("accuracy", found, torch.ones(n), seed=1)
    )


def test_bootstrap_draws_rows_together() -> None:
    """An output stays with its label, so a perfect answer is perfect in every draw."""
    scores = torch.arange(50.0)
    assert interval("spearman", scores, 2 * scores) == pytest.approx((1, 1))
    assert interval("accuracy", logits([0, 1] * 5, 2), torch.tensor([0, 1] * 5)) == (1, 1)
    seen: list[int] = []
    bootstrap(lambda rows: float(seen.extend(rows.tolist()) or 0), 7, resamples=20)
    assert len(seen) == 140 and set(seen) == set(range(7))


def test_what_does_not_belong_together() -> None:
    two, one = torch.zeros(3, 2), torch.zeros(3, 1)
    for name, outputs, labels, match in (
        ("f1", two, torch.zeros(3), "one of accuracy"),
        ("accuracy", two, torch.zeros(4), r"\[N, K\] and \[N\]"),
        ("accuracy", one, torch.zeros(3), "two outputs"),
        ("mcc", two, torch.tensor([0, 1, 2]), "label 2 of 2 classes"),
        ("accuracy", two, torch.tensor([0, 0.5, 1]), "label 0.5"),
        ("accuracy", two, torch.tensor([0, -1, 1]), "label -1"),
        ("pearson", two, torch.zeros(3), "one output an example, not 2"),
        ("spearman", torch.full((3, 1), math.nan), torch.zeros(3), "no number"),
    ):
        with pytest.raises(UsageError, match=match):
            metric(name, outputs, labels)
    with pytest.raises(EmptyText):
        metric("accuracy", torch.zeros(0, 2), torch.zeros(0))

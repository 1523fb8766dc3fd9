"""How good answers are: accuracy, Matthews' correlation, Pearson's and Spearman's, with intervals by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ditto.errors import EmptyText, UsageError

Tensor = torch.Tensor
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95


def metric(name: str, outputs: Tensor, labels: Tensor) -> float:
    """One metric of METRICS: `outputs` [N, labels] are logits and `labels` [N] classes' numbers for accuracy and mcc,
    `outputs` [N, 1] or [N] and `labels` [N] are scores for pearson and spearman.

    Raises UsageError for an unknown name, shapes that do not belong together, outputs that are not finite, labels that
    are no class; EmptyText where there is nothing.
    """
    found, true = _checked(name, outputs, labels)
    return METRICS[name](found, true)


def interval(
    name: str, outputs: Tensor, labels: Tensor, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The `bootstrap` interval of that metric, over examples."""
    found, true = _checked(name, outputs, labels)
    measure = METRICS[name]
    return bootstrap(lambda rows: measure(found[rows], true[rows]), len(true), resamples, level, seed)


def bootstrap(
    statistic: Callable[[Rows], float], count: int, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval (Efron, 1979) of a statistic of `count` rows: the same rows and seed give the same one.

    1. Draw `count` rows with replacement, `resamples` times, by PCG64 from `seed`.
    2. Compute the statistic of each draw.
    3. Leave out (1 - level) / 2 of the values at either end; between two values, linear.
    """
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(count, size=count)) for _ in range(resamples)]  # 1, 2
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))  # 3
    return float(low), float(high)


def pearson(x: Array, y: Array) -> float:
    """Correlation of two rows of numbers; 0 where all of one are the same."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / size) if size else 0.0


def spearman(x: Array, y: Array) -> float:
    """Pearson's correlation of the ranks, ties averaged."""
    return pearson(ranks(x), ranks(y))


def ranks(x: Array) -> Array:
    """Ranks from 0, ties averaged."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    averaged: Array = ((ends - counts + ends - 1) / 2)[inverse]
    return averaged


def _accuracy(outputs: Array, labels: Array) -> float:
    return float((outputs.argmax(1) == labels).mean())


def _mcc(outputs: Array, labels: Array) -> float:
    """For two classes Matthews' phi, for more Gorodkin's R_K (2004); 0 where all answers, or all labels, are one."""
    classes, n = outputs.shape[1], len(labels)
    answers = outputs.argmax(1)
    told, true = (np.bincount(x.astype(np.int64), minlength=classes).astype(np.float64) for x in (answers, labels))
    right = float((answers == labels).sum())
    size = np.sqrt((n * n - told @ told) * (n * n - true @ true))
    return float((right * n - told @ true) / size) if size else 0.0


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "mcc": _mcc,
    "pearson": lambda outputs, labels: pearson(outputs[:, 0], labels),
    "spearman": lambda outputs, labels: spearman(outputs[:, 0], labels),
}
OF_CLASSES = ("accuracy", "mcc")
OF_SCORES = ("spearman", "pearson")


def _checked(name: str, outputs: Tensor, labels: Tensor) -> tuple[Array, Array]:
    if name not in METRICS:
        raise UsageError(f"metric {name!r}: one of {', '.join(METRICS)}")
    if outputs.dim() == 1:
        outputs = outputs[:, None]
    if outputs.dim() != 2 or labels.shape != outputs.shape[:1]:
        raise UsageError(f"{name}: outputs {list(outputs.shape)} and labels {list(labels.shape)}: [N, K] and [N]")
    if not len(labels):
        raise EmptyText(f"{name} of no example")
    found, true = (np.asarray(x.detach().cpu().double().numpy()) for x in (outputs, labels))
    if not np.isfinite(found).all() or not np.isfinite(true).all():
        raise UsageError(f"{name}: an output or a label is infinite, or no number")
    count = found.shape[1]
    if name in OF_SCORES and count != 1:
        raise UsageError(f"{name} is of scores: one output an example, not {count}")
    if name in OF_CLASSES:
        if count < 2:
            raise UsageError(f"{name} is of classes: two outputs an example or more")
        wrong = true[(true != true.round()) | (true < 0) | (true >= count)]
        if len(wrong):
            raise UsageError(f"{name}: label {wrong[0]:g} of {count} classes, which count from 0")
    return found, true

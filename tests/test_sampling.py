"""Sampling: greedy, frequencies, what top-k and top-p exclude, seeds, and values that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from ditto.client.sampling import Sampler
from ditto.errors import UsageError

Tensor = torch.Tensor
LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0, 0.0])


def draws(sampler: Sampler, logits: Tensor = LOGITS, count: int = 4000) -> Tensor:
    """How often each token comes."""
    return torch.tensor(sampler.choose(logits.expand(count, -1))).bincount(minlength=len(logits)).double()


def test_greedy_is_the_largest() -> None:
    logits = torch.randn(20, 501, generator=torch.Generator().manual_seed(1))
    largest = logits.argmax(1).tolist()
    for sampler in (Sampler(), Sampler(1.0, top_k=1), Sampler(1.0, top_p=1e-9), Sampler(1e-300), Sampler(5e-324)):
        assert sampler.choose(logits) == largest
    assert Sampler().choose(torch.tensor([[1.0, 7.0, 7.0]])) == [1]
    assert Sampler().choose(torch.tensor([[1, 7, 3]])) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies(temperature: float, dtype: torch.dtype) -> None:
    got = draws(Sampler(temperature, seed=7), LOGITS.to(dtype))
    want = 4000 * (LOGITS.double() / temperature).softmax(0)
    assert ((got - want).square() / want).sum() < 25  # chi square with 5 degrees of freedom: p below 0.0002


def test_top_k_and_top_p_exclude() -> None:
    p = LOGITS.double().softmax(0)
    got = draws(Sampler(1.0, top_k=3, seed=1))
    assert set(got.nonzero().flatten().tolist()) == {0, 3, 2}
    want = 4000 * p[[0, 3, 2]] / p[[0, 3, 2]].sum()
    assert ((got[[0, 3, 2]] - want).square() / want).sum() < 20
    two = float(p[0] + p[3])
    assert set(draws(Sampler(1.0, top_p=two - 1e-6, seed=1)).nonzero().flatten().tolist()) == {0, 3}
    assert set(draws(Sampler(1.0, top_p=two + 1e-6, seed=1)).nonzero().flatten().tolist()) == {0, 3, 2}
    # after top_k = 2 the first token has 0.62 of what is left
    assert set(draws(Sampler(1.0, top_k=2, top_p=0.6, seed=1)).nonzero().flatten().tolist()) == {0}
    assert (draws(Sampler(1.0, top_k=100, seed=1)) > 0).all()


def test_excluded_by_the_caller() -> None:
    logits = LOGITS.clone()
    logits[0] = -math.inf
    assert draws(Sampler(2.0, seed=3), logits)[0] == 0


def test_seed() -> None:
    logits = torch.randn(50, 100, generator=torch.Generator().manual_seed(2))
    first = Sampler(1.0, seed=5).choose(logits)
    assert first == Sampler(1.0, seed=5).choose(logits) != Sampler(1.0, seed=6).choose(logits)
    assert Sampler(1.0).choose(logits) != Sampler(1.0).choose(logits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampler(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [[1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], []])
def test_logits_that_are_no_numbers_are_refused(row: list[float]) -> None:
    for sampler in (Sampler(), Sampler(1.0, seed=1)):
        with pytest.raises(UsageError):
            sampler.choose(torch.tensor([row]))
    with pytest.raises(UsageError):
        Sampler().choose(LOGITS)

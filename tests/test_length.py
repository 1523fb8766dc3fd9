"""Cost against length and batch: what benchmarks/length.py plots is what programs state, and grows as it says."""

from __future__ import annotations

import pytest

from benchmarks.length import COUNTS, WHOLE_MB, at, count, counted, fit, runs
from ditto.models import Description, random
from ditto.models.random import random_checkpoint, scaled_description

LENGTHS = range(32, 513, 48)


@pytest.fixture(scope="module")
def description() -> Description:
    """One layer of 16 with two heads, calibrated on 512 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random.SHAPES, "small", ("BertModel", 1, 16, 2, 32))
        patch.setitem(random.DIMENSIONS, "BertModel", random.DIMENSIONS["BertModel"] | {"vocabulary": 64})
        return scaled_description(random_checkpoint("small"), "small", 512)[0]


def test_a_polynomial_is_found() -> None:
    lengths = list(range(8, 97, 8))
    counts = [3 + 5 * n + 7 * n * n + (100 if n > 48 else 0) for n in lengths]
    (first, second) = runs(lengths, counts)
    assert (first[:2], second[:2]) == ((8, 48), (56, 96))
    assert first[2] == pytest.approx((3, 5, 7))
    assert second[2] == pytest.approx((103, 5, 7))
    assert runs(lengths, [n**3 for n in lengths]) == []
    form, error = fit(lengths, [n**3 for n in lengths])
    assert error == pytest.approx(max(abs(at(form, n) / n**3 - 1) for n in lengths))
    assert error > 0.1


@pytest.mark.parametrize("name", COUNTS)
def test_bytes_are_quadratic_between_two_steps_of_the_types(description: Description, name: str) -> None:
    """The form of three lengths gives the bytes of a fourth, to the byte."""
    lengths = [144, 160, 176, 192]
    bytes_ = [getattr(count(description, 1, n, hold_mb=WHOLE_MB), name) for n in lengths]
    form, _ = fit(lengths[:3], bytes_[:3])
    assert min(form[1:]) > 0
    assert at(form, lengths[3]) == pytest.approx(bytes_[3], abs=0.5)


def test_one_form_is_near_for_all_lengths_and_batches_are_multiples(description: Description) -> None:
    """Near: types follow the logarithm of the length, a bit or two of 32 over these lengths, and the reciprocal's
    tables grow by powers of two; the bound is not derived. Batches are multiples to the byte, beyond the few rows that
    softmax spends larger tables on for a round less, but for the salt of each root's tree, 16 bytes to each party."""
    found = counted(description, LENGTHS, (8, 16, 64), 32)
    for name in COUNTS:
        assert found[f"{name} form"]["largest error"] < 0.15
        once = 2 * 16 * 3 if name == "dealt" else 0  # of the embeddings' LayerNorm, and of the layer's two
        first, *more = (n - once for n in found["batches"][name])
        assert more == [2 * first, 8 * first]
    assert max(found["rounds"]) <= 1.1 * min(found["rounds"])

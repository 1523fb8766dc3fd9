"""A weight under a fixed mask: what the dealer and the parties expand of it is one mask, whatever their kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine import MemoryChannel, both
from test_ring import random_ring

from ditto.engine import weights as engine_weights
from ditto.engine.program import Wire
from ditto.engine.weights import DealerWeights, ExpandedShare, PartyWeights
from ditto.ring import signed
from ditto.ring.kernels import RingMatrix

SEEDS = (b"0" * 16, b"1" * 16)


def opened(wire: Wire, w: torch.Tensor, twice: bool) -> list[PartyWeights]:
    """Both parties of a model of one matrix, with F opened."""
    first = random_ring(wire.shape, wire.ring, 3)
    shares, channels = (first, w - first), MemoryChannel.pair()
    held = [PartyWeights({"w": wire}, i, SEEDS[i], {"w": shares[i]}, twice) for i in (0, 1)]
    both(lambda i: held[i].open_masked(channels[i]))
    return held


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("kernel", ["integer", "float64", "int8"])
@pytest.mark.parametrize("bits", [8, 12, 16, 24, 32, 40, 64])
def test_shares_of_a_matrix(bits: int, kernel: str, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parties' products add up to x W, and F - B is W, in blocks of 3 columns and a rest of 2."""
    monkeypatch.setattr(engine_weights, "EXPANDED", 3 * 50 * -(-bits // 8))
    made: Any = lambda w, of, _=None: RingMatrix(w, of, kernel)  # noqa: E731
    monkeypatch.setattr(made, "of_digits", RingMatrix.of_digits, raising=False)
    monkeypatch.setattr(engine_weights, "RingMatrix", made)
    wire = Wire("w", bits, 4, (50, 11), 1.0, held="matrix")
    w, x = random_ring(wire.shape, bits, 1), random_ring((6, 50), bits, 2)
    held = [one["w"] for one in opened(wire, w, twice)]
    assert all(isinstance(one.share, ExpandedShare) == (kernel != "float64" and not twice) for one in held)
    total = sum(one.share.product(x).long() for one in held)
    assert torch.equal(signed(total, bits), signed(x.long() @ w.long(), bits))
    every, mask = torch.arange(50), DealerWeights({"w": wire}, SEEDS)["w"]
    assert torch.equal(signed(held[0].masked.take(every).long() - mask.take(every).long(), bits), signed(w, bits))


def test_digits_of_a_mask_are_uniform() -> None:
    """Every byte of both shares takes each value about as often: 2^18 of them, six deviations."""
    wire = Wire("w", 32, 4, (256, 256), 1.0, held="matrix")
    for party in (0, 1):
        found = engine_weights.weight_mask(SEEDS[party], wire, party).contiguous().view(torch.uint8)
        counts = torch.bincount(found.flatten().long(), minlength=256)
        assert (counts - 1024).abs().max() < 6 * 32

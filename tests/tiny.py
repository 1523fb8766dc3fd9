"""Shapes so small that a test can share and ask them again and again."""

from __future__ import annotations

import pytest
import torch

from ditto.models import Description, random, random_model
from ditto.models.description import ScoreRange
from ditto.models.tokenizer import Batch
from ditto.presets.choices import Choices


def small_shapes(patch: pytest.MonkeyPatch, seq: int, bert: str = "bert", gpt2: str = "gpt2") -> None:
    """One layer of 16, 64 words and 32 positions under these names; calibrated on one text of `seq` tokens."""
    patch.setitem(random.SHAPES, bert, ("BertModel", 1, 16, 2, 32))
    patch.setitem(random.SHAPES, gpt2, ("GPT2LMHeadModel", 1, 16, 2, 32))
    for name in ("BertModel", "GPT2LMHeadModel"):
        patch.setitem(random.DIMENSIONS, name, random.DIMENSIONS[name] | {"vocabulary": 64, "positions": 32})
    ids = torch.randint(0, 64, (1, seq), generator=torch.Generator().manual_seed(0))
    patch.setattr(random, "random_batch", lambda *_: Batch(ids, torch.zeros_like(ids), torch.ones_like(ids)))


def small_model() -> tuple[str, dict[str, torch.Tensor]]:
    """An encoder's description, under the name m, and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch, 16)
        description, weights, _ = random_model("bert", 1, 16)
    return description.model_copy(update={"name": "m"}).text(), weights


def in_two_windows(description: Description) -> Description:
    """The same model with scores that may rise far, and a softmax without a maximum all the same."""
    wide = {"scores": ScoreRange(size=40.0, above=17.0, below=20.0, spread=30.0)}
    layers = tuple(layer.model_copy(update=wide) for layer in description.ranges.layers)
    choices = (Choices(used="two windows"),) * len(layers)
    ranges = description.ranges.model_copy(update={"layers": layers})
    return description.model_copy(update={"ranges": ranges, "choices": choices})

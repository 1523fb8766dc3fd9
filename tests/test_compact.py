"""Checkpoints with matrices in int8: what is written is what is read, to half a level; what lies is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ditto.errors import BadCheckpoint
from ditto.models import load_checkpoint
from ditto.models.compact import SCALE, compacted, rounded
from ditto.models.export import save_compact
from ditto.models.tensors import SINGLE, read_tensors

Tensors = dict[str, torch.Tensor]


def some() -> Tensors:
    """Rows of very different sizes, one of zeros, one of one number that is hardly one."""
    g = torch.Generator().manual_seed(1)
    w = torch.randn(64, 48, generator=g) * torch.logspace(-20, 20, 64)[:, None]
    w[3], w[5] = 0.0, 0.0
    w[5, 7] = 1e-44
    return {"a.weight": w, "a.bias": torch.randn(48, generator=g), "one": torch.tensor(1 / 3)}


def test_what_is_read_is_half_a_level_away_at_most(tmp_path: Path) -> None:
    want = some()
    save_file(compacted(want), tmp_path / SINGLE)
    got = read_tensors(tmp_path)
    assert set(got) == set(want), "scales are no tensors of the model"
    assert torch.equal(got["a.bias"], want["a.bias"]) and torch.equal(got["one"], want["one"])
    w = want["a.weight"].double()
    # a level is max |row| / 127; fp32 rounds scale, quotient and product, each by 2^-24 of max |row| at most
    bound = w.abs().amax(1, keepdim=True) * (1 / 254 + 3 * 2.0**-24)
    bound[5] = torch.finfo(torch.float32).tiny / 2  # below the least scale
    assert bool(((got["a.weight"].double() - w).abs() <= bound).all())
    assert torch.equal(got["a.weight"], rounded(want["a.weight"])), "training rounds as the file does"


def test_a_model_as_transformers_writes_it(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=400
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "large")
    (tmp_path / "large" / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\n")
    save_compact(tmp_path / "large", tmp_path / "small")
    sizes = [(tmp_path / name / SINGLE).stat().st_size for name in ("large", "small")]
    assert sizes[1] < 0.3 * sizes[0]
    large, small = (load_checkpoint(tmp_path / name) for name in ("large", "small"))
    assert small.dimensions == large.dimensions and small.tokenizer().size == 4
    for name, tensor in large.tensors.items():
        assert torch.equal(small.tensors[name], rounded(tensor) if tensor.dim() == 2 else tensor), name


def broken() -> dict[str, tuple[Tensors, str]]:
    levels, scale = torch.ones((4, 3), dtype=torch.int8), torch.ones((4, 1))
    wrong = {
        "scales of another shape": (scale.flatten(), "one scale a row"),
        "too few scales": (scale[:3], "one scale a row"),
        "scales of columns": (torch.ones((1, 3)), "one scale a row"),
        "whole scales": (scale.int(), "w.weight_scale is I32"),
        "a scale of no size": (scale * torch.tensor([[1.0], [0.0], [1.0], [1.0]]), "not above 0"),
        "a negative scale": (-scale, "not above 0"),
        "no number": (scale * float("nan"), "no number"),
        "infinite": (scale * float("inf"), "infinite"),
    }
    found = {key: ({"w.weight": levels, f"w.weight{SCALE}": bad}, words) for key, (bad, words) in wrong.items()}
    found["no scales"] = {"w.weight": levels}, r"w\.weight is I8 without w\.weight_scale"
    found["levels of another type"] = {"w.weight": levels.short(), f"w.weight{SCALE}": scale}, r"w\.weight is I16"
    found["a vector"] = {"w.weight": levels[:, 0].clone(), f"w.weight{SCALE}": scale}, "one scale a row"
    return found


@pytest.mark.parametrize("case", broken())
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    tensors, words = broken()[case]
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(BadCheckpoint, match=words):
        read_tensors(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    with pytest.raises(BadCheckpoint, match="a: infinite, or no number"):
        compacted({"a": torch.tensor([[1.0, value]])})


def test_other_integers_stay_buffers(tmp_path: Path) -> None:
    """A float named like a scale is a tensor like others where nothing is scaled by it."""
    tensors = {"w": torch.ones(2), "w_scale": torch.ones(2, 1), "ids": torch.ones(2, dtype=torch.int8)}
    save_file(tensors, tmp_path / SINGLE)
    assert set(read_tensors(tmp_path)) == {"w", "w_scale"}

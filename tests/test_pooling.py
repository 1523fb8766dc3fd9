"""One vector of a text's hidden states: sentence-transformers' modules.json, read, written and refused. About 2 s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ditto.errors import BadCheckpoint, UnsupportedArchitecture, UsageError
from ditto.models import load_checkpoint
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder
from ditto.models.encoder.pooling import read_pooling
from ditto.models.export import save_encoder
from ditto.models.random import random_weights
from ditto.models.ranges import silent
from ditto.train.encoder_subject import EncoderSubject

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog sat run ##s ##ning cafe . , ! ?".split()
LIBRARY = "sentence_transformers.models"
D = Dimensions(
    hidden=16, layers=1, heads=2, inner=32, vocabulary=64, positions=32, token_types=2, embedding=16, epsilon=1e-12
)
FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


def checkpoint(directory: Path, class_name: str = "BertModel", **changed: Any) -> Path:
    """A tiny BERT with random weights, its tokenizer, and the modules that its dimensions, as changed, ask for."""
    made = random_weights(class_name, D.model_copy(update=changed))
    for name, tensor in made.tensors.items():  # so that answers to two texts are apart
        tensor *= 10 if tensor.dim() == 2 and "embeddings" not in name else 1
    source = directory / "source"
    source.mkdir(parents=True)
    (source / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    sizes = {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
        "intermediate_size": 32, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(sizes | {"layer_norm_eps": 1e-12}))
    save_encoder(made, directory, source)
    return directory


def modules(directory: Path, *kinds: str, pooling: dict[str, Any] | None = None) -> Path:
    """modules.json as the library writes it; the Pooling's settings where they are given."""
    rows = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind.rpartition('.')[2]}" if i else "", "type": kind}
        for i, kind in enumerate(kind if "." in kind else f"{LIBRARY}.{kind}" for kind in kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(rows))
    if pooling is not None:
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return directory


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_the_reference_pools_as_the_library_does(how: str, normalize: bool, tmp_path: Path) -> None:
    """Against the formulas of its module Pooling, padding included; a mere mean needs no modules.json."""
    where = checkpoint(tmp_path / "checkpoint", pooling=how, normalize=normalize)
    assert (where / "modules.json").exists() == (how != "mean" or normalize)
    found = load_checkpoint(where)
    assert (found.dimensions.pooling, found.dimensions.normalize) == (how, normalize)
    batch = found.tokenizer().encode(["the cat sat", "a dog running , the cat !"], 32)
    assert 0 in batch.mask, "without padding nothing is shown of it"
    assert isinstance(found.architecture, Encoder)
    hidden = found.architecture.floats(found.tensors, D, batch, silent)
    mask = batch.mask[..., None].float()
    want = {
        "cls": hidden[:, 0],
        "mean": (hidden * mask).sum(1) / mask.sum(1),
        "max": torch.where(mask == 0, -1e9, hidden).max(1).values,
    }[how]
    if normalize:
        want = torch.nn.functional.normalize(want)
    assert torch.equal(torch.tensor(found.reference(batch)), want)


def test_only_vectors_are_pooled(tmp_path: Path) -> None:
    where = checkpoint(tmp_path, "BertForSequenceClassification", labels=("no", "yes"))
    modules(where, "Transformer", "Dense", pooling={})
    assert load_checkpoint(where).dimensions.pooling == "mean"


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, "mean"),
        ({"word_embedding_dimension": 16, **FLAGS, "pooling_mode_max_tokens": True}, "max"),
        ({**FLAGS, "pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode": "cls", "embedding_dimension": 16}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
    ],
)
def test_what_a_pooling_writes(settings: dict[str, Any], how: str, tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling", pooling=settings)
    assert read_pooling(tmp_path, D) == D.model_copy(update={"pooling": how})
    modules(tmp_path, "sentence_transformers.base.modules.transformer.Transformer", "Pooling", "Normalize")
    assert read_pooling(tmp_path, D).normalize


@pytest.mark.parametrize(
    ("kinds", "settings", "said"),
    [
        (("Transformer", "Pooling", "Dense"), {}, "module Dense"),
        (("Transformer", "Pooling", "Dense", "Normalize"), {}, "module Dense"),
        (("Transformer", "Pooling", "custom.Normalize"), {}, "module custom.Normalize"),
        (("Transformer", "Normalize", "Pooling"), {}, "perhaps a Normalize"),
        (("Transformer",), {}, "a Pooling"),
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, "pooling_mode_mean_tokens, pooling_mode_cls"),
        (("Transformer", "Pooling"), {**FLAGS, "pooling_mode_lasttoken": True}, "pooling_mode_lasttoken"),
        (("Transformer", "Pooling"), {**FLAGS, "pooling_mode_mean_sqrt_len_tokens": True}, "sqrt_len"),
        (("Transformer", "Pooling"), FLAGS, "pooling none"),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "pooling weightedmean"),
        (("Transformer", "Pooling"), {"pooling_mode": ["cls", "mean"]}, "pooling cls, mean"),
    ],
)
def test_what_is_not_supported_is_refused(
    kinds: tuple[str, ...], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    modules(tmp_path, *kinds, pooling=settings)
    with pytest.raises(UnsupportedArchitecture, match=said):
        read_pooling(tmp_path, D)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_roberta_config.json", {"do_lower_case": True}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
    ],
)
def test_changed_texts_are_refused(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling", pooling={})
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UnsupportedArchitecture, match=name):
        read_pooling(tmp_path, D)
    plain = {"do_lower_case": False, "prompts": {"query": "query: ", "": ""}, "default_prompt_name": None}
    (tmp_path / name).write_text(json.dumps(plain))
    assert read_pooling(tmp_path, D) == D


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"type": 3}]', '[{"type": "a", "path": 1}]', "[[", "\x00"])
def test_damaged_modules(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"modules\.json"):
        read_pooling(tmp_path, D)


@pytest.mark.parametrize("content", [None, "[]", "nonsense", '{"word_embedding_dimension": 8}'])
def test_damaged_pooling(content: str | None, tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling")
    (tmp_path / "1_Pooling").mkdir()
    if content is not None:
        (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match="1_Pooling"):
        read_pooling(tmp_path, D)


@pytest.mark.parametrize("path", ["../other", "/other"])
def test_a_pooling_outside_of_the_checkpoint(path: str, tmp_path: Path) -> None:
    modules(tmp_path, "Transformer", "Pooling", pooling={})
    content = (tmp_path / "modules.json").read_text().replace("1_Pooling", path)
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(BadCheckpoint, match="another directory"):
        read_pooling(tmp_path, D)


def test_distillation_knows_means_only(tmp_path: Path) -> None:
    teacher = load_checkpoint(checkpoint(tmp_path, pooling="cls"))
    with pytest.raises(UsageError, match="pooling cls"):
        EncoderSubject(teacher, ["the cat"], [], "ditto", batch=1, longest=8, seed=0, calibrated=1)

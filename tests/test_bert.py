"""BERT end to end in memory: MPC against the integer interpreter and against floats; checkpoints; padding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine import run_mpc
from safetensors.torch import save_file

from ditto.engine.plain import run_plain
from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UnsupportedArchitecture, VersionMismatch
from ditto.models import (
    Plan,
    architecture_of,
    compile_stage,
    decode_outputs,
    encode_inputs,
    import_model,
    load_checkpoint,
    parse,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog runs sleeps fast here now big small red blue".split()
TEXTS = ["the cat sleeps", "a big red dog runs fast", "the small blue cat runs here now", "dog"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small classifier as Hugging Face writes it."""
    config = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": len(WORDS),
        "max_position_embeddings": 24,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "id2label": {"0": "a", "1": "b", "2": "c"},
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    architecture, tensors = architecture_of(config["architectures"][0]), {}
    for name, shape in architecture.expected(architecture.dimensions(config)).items():
        base = 1.0 if "LayerNorm.weight" in name else 0.0
        scale = 0.2 if "LayerNorm" not in name else 0.05
        full = name if name.startswith("classifier") else f"bert.{name}"
        tensors[full] = base + scale * torch.randn(shape, generator=generator)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


@pytest.mark.parametrize("embeddings", ["secret", "public"])
def test_classifier(checkpoint: Path, embeddings: str) -> None:
    loaded = load_checkpoint(checkpoint)
    description, weights = import_model(loaded, "small", TEXTS, embeddings=embeddings)
    description = parse(description.text())  # as it travels
    batch = loaded.tokenizer().encode(TEXTS[1:], 24)
    program = compile_stage(description, Plan(*batch.shape))
    inputs = encode_inputs(description, program, batch, loaded.tensors)
    run = run_mpc(program, inputs, {n: weights[n] for n in program.weights})
    plain = torch.tensor(decode_outputs(description, program, run_plain(program, inputs, weights), batch))
    got = torch.tensor(decode_outputs(description, program, run.outputs, batch))
    want = torch.tensor(loaded.reference(batch))
    assert got.shape == want.shape == (3, 3)
    assert (got - want).abs().max() < 0.05 and (got - plain).abs().max() < 0.05
    for layer in range(len(program.layers)):
        cost = program.cost(layer)
        rows = run.ledgers[0].rows("online", layer)
        assert (sum(r.rounds for r in rows), sum(r.bytes_sent for r in rows)) == (cost.rounds, cost.online)


def test_float_model_agrees_with_transformers(checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = load_checkpoint(checkpoint)
    batch = loaded.tokenizer().encode(TEXTS, 24)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        want = model(input_ids=batch.ids, token_type_ids=batch.types, attention_mask=batch.mask).logits
    assert (torch.tensor(loaded.reference(batch)) - want).abs().max() < 1e-5


def test_a_longer_bucket_changes_nothing_but_noise(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    description, weights = import_model(loaded, "small", TEXTS)
    alone = loaded.tokenizer().encode(["dog"], 24)
    wide = loaded.tokenizer().encode(["dog"], 24)
    for name in ("ids", "types", "mask"):
        setattr(wide, name, torch.nn.functional.pad(getattr(wide, name), (0, 8)))
    answers = []
    for batch in (alone, wide):
        program = compile_stage(description, Plan(*batch.shape))
        plain = run_plain(program, encode_inputs(description, program, batch), weights)
        answers.append(decode_outputs(description, program, plain, batch))
    assert (torch.tensor(answers[0]) - torch.tensor(answers[1])).abs().max() < 0.05


def test_texts_are_checked(checkpoint: Path) -> None:
    tokenizer = load_checkpoint(checkpoint).tokenizer()
    assert tokenizer.encode(["dog"], 24).shape == (1, 16)
    with pytest.raises(EmptyText):
        tokenizer.encode(["  "], 24)
    with pytest.raises(TextTooLong, match="at most 24"):
        tokenizer.encode(["dog " * 30], 24)


def test_bad_checkpoints_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"architectures": ["T5Model"]}))
    with pytest.raises(UnsupportedArchitecture, match="T5Model"):
        load_checkpoint(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BadCheckpoint, match=r"encoder\.layer\.2.*missing"):
        load_checkpoint(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 97}))
    with pytest.raises(BadCheckpoint, match="shape"):
        load_checkpoint(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        load_checkpoint(checkpoint)


def test_a_description_of_another_format_is_refused(checkpoint: Path) -> None:
    description, _ = import_model(load_checkpoint(checkpoint), "small", TEXTS)
    with pytest.raises(VersionMismatch, match="import and share it again"):
        parse(description.text().replace('"format":3', '"format":2'))

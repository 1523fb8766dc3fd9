"""BERT end to end in memory: MPC against the integer interpreter and against floats; checkpoints; padding."""

from __future__ import annotations

import json
from dataclasses import replace
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
    describe,
    encode_inputs,
    import_model,
    load_checkpoint,
    parse,
)
from ditto.models.checkpoint import Checkpoint
from ditto.models.encoder.floats import forward
from ditto.models.ranges import CLASSES, GRANULE, Seen

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


def with_outliers(loaded: Checkpoint) -> Checkpoint:
    """As trained base-size models are: a few neurons a hundred wide before GELU, and after the block a channel in which
    the residual sum passes a thousand."""
    tensors = {name: t.clone() for name, t in loaded.tensors.items()}
    for i in range(loaded.dimensions.layers):
        wide = torch.arange(3, 93, 30)
        tensors[f"layer.{i}.ffn1.weight"][wide] *= 30
        tensors[f"layer.{i}.ffn2.weight"][:, wide] /= 30
    tensors["layer.0.ffn2.bias"][5] += 1000.0
    return replace(loaded, tensors=tensors)


def test_outliers_are_served(checkpoint: Path) -> None:
    """The neurons' ranges are told apart, in coarse classes; a wide residual sum costs fraction bits only."""
    loaded = with_outliers(load_checkpoint(checkpoint))
    description, weights = import_model(loaded, "small", TEXTS)
    layer = description.ranges.layers[0]
    assert layer.activation > 64 and layer.norm2.input > 1024
    assert all(group.bound in CLASSES and group.count % GRANULE == 0 for group in layer.neurons)
    assert layer.neurons[0].bound < 16 < 64 < layer.neurons[-1].bound and layer.neurons[-1].count == GRANULE
    batch = loaded.tokenizer().encode(TEXTS[1:], 24)
    program = compile_stage(description, Plan(*batch.shape))
    inputs = encode_inputs(description, program, batch, loaded.tensors)
    run = run_mpc(program, inputs, {n: weights[n] for n in program.weights})
    got = torch.tensor(decode_outputs(description, program, run.outputs, batch))
    assert (got - torch.tensor(loaded.reference(batch))).abs().max() < 0.05


def test_neurons_in_another_order_are_the_same_model(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    batch = loaded.tokenizer().encode(TEXTS, 24)
    description, arranged = describe(loaded, "small", [batch])
    assert not torch.equal(arranged.tensors["layer.0.ffn1.bias"], loaded.tensors["layer.0.ffn1.bias"])
    assert (torch.tensor(arranged.reference(batch)) - torch.tensor(loaded.reference(batch))).abs().max() < 1e-5
    seen = Seen()
    forward(arranged.tensors, loaded.dimensions, batch, seen)
    for i, layer in enumerate(description.ranges.layers):
        assert torch.equal(seen.order(i), torch.arange(96))
        ends = torch.tensor([group.bound for group in layer.neurons for _ in range(group.count)])
        assert len(ends) == 96 and (seen._neurons[i] * 1.25 <= ends).all()


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
        parse(description.text().replace('"format":6', '"format":5'))

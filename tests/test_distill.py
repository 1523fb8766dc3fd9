"""Distillation on a toy: the penalty and what it saves, resuming, the import of what comes out."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ditto.cli import app
from ditto.errors import BadCheckpoint, UsageError
from ditto.models import Checkpoint, Plan, architecture_of, compile_stage, import_calibrated, load_checkpoint
from ditto.models.calibrated import NAME, load_calibrated
from ditto.models.ranges import Seen, silent
from ditto.models.tokenizer import Tokenizer
from ditto.presets import preset_of
from ditto.presets.choices import Choices
from ditto.train.distill import Distiller, Settings
from ditto.train.encoder_subject import EncoderSubject, functions_of
from ditto.train.penalty import KNOBS, Prices, Watched, penalty
from ditto.train.run import Run
from ditto.train.subject import Shown
from ditto.train.widths import Widths

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = "the a cat dog sat ran on under mat tree and quickly slowly red green two men play music .".split()
SEQ = 16
CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_act": "gelu",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 5 + len(WORDS),
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "bad", "1": "good"},
}


def sentences(count: int, seed: int, most: int = 14) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, most))) for _ in range(count)]


TRAIN, VALID = sentences(64, 0), sentences(8, 1)
PAIRS = list(enumerate(zip(sentences(10, 2, most=6), sentences(10, 3, most=6), strict=True)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights, wide before its activation."""
    path = tmp_path_factory.mktemp("teacher")
    generator = torch.Generator().manual_seed(1)
    architecture, tensors = architecture_of("BertForSequenceClassification"), {}
    for name, shape in architecture.expected(architecture.dimensions(CONFIG)).items():
        if "LayerNorm" in name:
            tensors[name] = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            size = 0.5 if "intermediate" in name else 0.2
            tensors[name] = size * torch.randn(shape, generator=generator)
    named = {n if n.startswith("classifier") else f"bert.{n}": t for n, t in tensors.items()}
    save_file(named, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return path


@pytest.fixture(scope="module")
def teacher(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


SETTINGS = Settings(
    steps=(18, 3, 3), rates=(1e-2, 1e-3, 1e-3), batch=8, longest=SEQ, budget_mb=0.01, seq=SEQ, check_every=6,
    validate_every=10, calibrated=32,
)  # fmt: skip


def distiller(teacher: Checkpoint, **changed: Any) -> Distiller:
    return Distiller.on_texts(teacher, TRAIN, VALID, replace(SETTINGS, **changed))


def subject(teacher: Checkpoint) -> EncoderSubject:
    return EncoderSubject(teacher, TRAIN, VALID, "ditto", batch=8, longest=SEQ, seed=0, calibrated=32)


@pytest.fixture(scope="module")
def student(teacher: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a distillation that was never stopped."""
    path = tmp_path_factory.mktemp("student") / "out"
    assert Run(distiller(teacher), path).go(lambda: False)
    return path


# Texts ---------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_text_in_batches_of_one_width_and_size(directory: Path) -> None:
    texts = sentences(50, 2, most=30)
    widths = Widths(Tokenizer.load(directory), texts, 32, 8, seed=3)
    epochs = [[widths.batch(epoch * widths.steps + i) for i in range(widths.steps)] for epoch in (0, 1)]
    rows = [
        {tuple(ids[mask.bool()].tolist()) for b in e for ids, mask in zip(b.ids, b.mask, strict=True)} for e in epochs
    ]
    one_by_one = Tokenizer.load(directory).encode(texts, 40)
    assert (
        rows[0]
        == rows[1]
        == {tuple(i[m.bool()].tolist()) for i, m in zip(one_by_one.ids, one_by_one.mask, strict=True)}
    )
    assert {b.shape for b in epochs[0]} == {(8, 16), (8, 32)}
    assert not torch.equal(epochs[0][0].ids, epochs[1][0].ids)
    again = Widths(Tokenizer.load(directory), texts, 32, 8, seed=3)
    assert torch.equal(again.batch(widths.steps + 2).ids, epochs[1][2].ids)
    places = torch.cat([index for _, index in widths.everything()])
    assert sorted(places[places >= 0].tolist()) == list(range(50))
    assert sum(len(b.ids) for b in widths.sample(20)) == 20


# The penalty ---------------------------------------------------------------------------------------


def test_penalty_is_of_the_largest_values_beyond_cheaper_ranges(teacher: Checkpoint) -> None:
    """Of 8 texts the one with the largest value of a neuron; below its target it costs nothing."""
    batch = teacher.tokenizer().encode(TRAIN[:8], SEQ)
    tensors = {name: t.clone().requires_grad_() for name, t in teacher.tensors.items()}
    watched = Watched(("norm1", "norm2"))
    subject(teacher).in_floats(tensors, batch, watched)
    most = watched.neurons[0].amax(0).detach()
    knobs = torch.tensor([[watched.knobs[0, name].detach().max().item() for name in KNOBS]])
    nothing = Prices(most[None], torch.ones(1, 32), knobs, torch.ones(1, len(KNOBS)), total=10.0)
    assert penalty(watched, nothing) == 0
    lower = replace(nothing, neurons=most[None] - torch.arange(32.0) / 100, knobs=knobs - 0.5)
    wanted = (torch.arange(32.0).sum() / 100 + 0.5 * len(KNOBS)) / 10
    got = penalty(watched, lower)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
    got.backward()  # type: ignore[no-untyped-call]
    assert tensors["layer.0.ffn1.weight"].grad is not None and tensors["layer.0.query.weight"].grad is not None


def test_what_is_watched_is_what_calibration_sees(teacher: Checkpoint) -> None:
    batch = teacher.tokenizer().encode(TRAIN[:8], SEQ)
    watched, seen = Watched(("norm1", "norm2")), Seen()
    for observe in (watched, seen):
        subject(teacher).in_floats(teacher.tensors, batch, observe)
    layer = seen.layer(0, "norm1", "norm2")
    assert torch.equal(watched.neurons[0].amax(0), seen.neurons(0))
    found = {name: watched.knobs[0, name].max().exp2().item() for name in KNOBS}
    assert found["above"] * 1.5 == pytest.approx(layer.scores.above, rel=0.01)
    assert found["below"] * 1.5 == pytest.approx(layer.scores.below, rel=0.01)
    assert found["spread"] * 1.5 == pytest.approx(layer.scores.spread, rel=0.01)
    assert found["qkv"] * 1.5 == pytest.approx(layer.qkv, rel=0.01)
    for norm, known in (("norm1", layer.norm1), ("norm2", layer.norm2)):
        assert found[f"{norm} most"] * 2 == pytest.approx(known.variance[1], rel=0.01)
        assert found[f"{norm} least"] * 2 == pytest.approx(1 / known.variance[0], rel=0.01)


def test_ranges_move_and_the_program_costs_less(teacher: Checkpoint, student: Path) -> None:
    """The counted bytes, too, of the program that the import makes of it: with LayerNorm's tables, whose bytes go by
    the octaves of the variance, as the penalty moves them. (Trees of keys hardly do.)"""
    before, _, prices = distiller(teacher).calibrate()
    assert prices is not None and prices.neuron_prices.min() > 0
    after, _ = import_calibrated(load_checkpoint(student), "small")
    wide, narrow = (d.ranges.layers[0].activation for d in (before, after))
    assert narrow < 0.95 * wide
    tables = (Choices(deviation="large"),)
    by_tables = [d.model_copy(update={"choices": tables}) for d in (before, after)]
    costs = [compile_stage(d, Plan(1, SEQ)).cost().dealer for d in by_tables]
    assert costs[1] < 0.7 * costs[0]
    trees = [compile_stage(d, Plan(1, SEQ)).cost().dealer for d in (before, after)]
    assert trees[1] < trees[0] < costs[0]


def test_strength_follows_what_is_predicted(teacher: Checkpoint) -> None:
    short = distiller(teacher, budget_mb=1e-3)
    far = distiller(teacher, budget_mb=1e3)
    fixed = distiller(teacher, budget_mb=None, strength=0.5)
    for trainer in (short, far, fixed):
        for _ in range(7):
            trainer.step()
        assert len(trainer.checks) == 2 and trainer.checks[0].strength == (0.5 if trainer is fixed else 1)
    assert short.strength == 1.5 and not short.kept(short.checks[-1])
    assert far.strength == 0.9 and far.kept(far.checks[-1])
    assert fixed.strength == 0.5 and fixed.checks[-1].mb < fixed.checks[0].mb


def test_only_wanted_ranges_count(teacher: Checkpoint) -> None:
    """With a largest |x| alone, nothing is paid below it."""
    _, _, prices = distiller(teacher, budget_mb=None, max_range=3.0).calibrate()
    assert prices is not None and torch.equal(prices.neurons, torch.full((1, 32), 3.0))
    assert not prices.knob_prices.any() and (prices.neuron_prices > 0).all()


# Losses --------------------------------------------------------------------------------------------


def test_losses_are_zero_for_the_teacher_and_padding_does_not_count(teacher: Checkpoint) -> None:
    of, batch = subject(teacher), teacher.tokenizer().encode(TRAIN[:4], SEQ)
    same, other = of.teacher(batch), of.in_floats(teacher.tensors, batch, silent)
    assert of.layers_loss(same, other, batch) == of.output_loss(same, other, batch) == 0
    padding = 1 - batch.mask.reshape(-1, 1)
    shifted = Shown(other.output, [x + padding for x in other.hidden], [x - padding for x in other.contexts])
    assert of.layers_loss(shifted, same, batch) == 0
    moved = Shown(other.output + torch.tensor([1.0, 0.0]), [x + 1 for x in other.hidden], [*other.contexts])
    assert of.layers_loss(moved, same, batch) > 0 and of.output_loss(moved, same, batch) > 0


def test_embeddings_and_scores_are_distilled_by_mean_squares(directory: Path, tmp_path: Path) -> None:
    """A pair's texts by the cosine of their means, as the command measures them; a head of one output by its value."""
    (tmp_path / "pairs.csv").write_text("text,text2,label\n" + "".join(f"{a},{b},{i}\n" for i, (a, b) in PAIRS))
    for name, labels in (("BertModel", None), ("BertForSequenceClassification", {"0": "score"})):
        of = shutil.copytree(directory, tmp_path / name)
        (of / "config.json").write_text(json.dumps(CONFIG | {"architectures": [name], "id2label": labels}))
        if labels:
            tensors = load_file(of / "model.safetensors")
            kept = {n: t[:1].clone() if n.startswith("classifier") else t for n, t in tensors.items()}
            save_file(kept, of / "model.safetensors")
        command = ("distill", "--teacher", of, "--task", tmp_path / "pairs.csv", "--out", tmp_path / f"{name}-out")
        document = json.loads(ditto(*command, "--batch", 4, "--validations", 1, "--calibrated", 8, "--json"))
        assert document["finished"] and -1 <= document["valid"] <= 1
        assert load_calibrated(load_checkpoint(tmp_path / f"{name}-out")).architecture == name


def test_presets_with_other_functions_are_distilled_with_them() -> None:
    x = torch.linspace(-3, 3, 7)
    quad, squares = functions_of(preset_of("mpcformer").style)
    assert torch.equal(quad(x), ((x + 1) ** 2 + 3) / 8)
    scores = torch.tensor([[1.0, -2.0, -1e9]])
    assert squares(scores).tolist()[0] == pytest.approx([36 / 45, 9 / 45, 0])
    assert functions_of(preset_of("ditto").style)[0](x).tolist() == torch.nn.functional.gelu(x).tolist()


# Stopping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(4, 18, 20), (6, 21)])
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    teacher: Checkpoint, student: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """Within stages, at their borders, at a calibration."""
    for stop in stops:
        run = Run(distiller(teacher), tmp_path / "out")
        trainer = run.trainer
        assert not run.go(lambda trainer=trainer, stop=stop: trainer.at.step == stop)  # type: ignore[misc]
    assert Run(distiller(teacher), tmp_path / "out").go(lambda: False)
    for name in ("model.safetensors", NAME):
        assert (tmp_path / "out" / name).read_bytes() == (student / name).read_bytes()


def test_another_budget_is_another_run(teacher: Checkpoint, student: Path) -> None:
    with pytest.raises(UsageError, match="--budget-mb"):
        Run(distiller(teacher, budget_mb=1.0), student)


def test_from_a_file_to_an_imported_model(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line: stopped by its time, going on, and what it says."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TRAIN))
    (tmp_path / "texts.tsv").write_text("text\tlabel\n" + rows)
    command = (
        "distill", "--teacher", directory, "--task", tmp_path / "texts.tsv", "--out", tmp_path / "out", "--batch", 8,
        "--preset", "ditto-icml24", "--stage1-epochs", 0.5, "--stage2-epochs", 0.25, "--json",
    )  # fmt: skip
    stopped = json.loads(ditto(*command, "--minutes", 0))
    assert (stopped["step"], stopped["finished"]) == (0, False)
    done = json.loads(ditto(*command))
    assert done["finished"] and done["step"] == done["steps"] == 4 + 2 and 0 <= done["valid"] <= 1
    assert done["kept"] is None and done["dealer_mb"] > 0
    description, _ = import_calibrated(load_checkpoint(tmp_path / "out"), "x")
    assert description.preset == "ditto-icml24"
    ditto(*command, "--seed", 1, code=2)
    ditto(*command, "--ranges-epochs", 1, code=2)
    ditto("distill", "--teacher", directory, "--task", "sst2", "--out", tmp_path / "other", code=2)
    ditto("distill", "--teacher", directory, "--task", "nosuch", "--out", tmp_path / "other", code=2)
    assert not (tmp_path / "other").exists()


# Importing -----------------------------------------------------------------------------------------


def ditto(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == code, result.output
    return result.output


def test_it_is_imported_without_texts(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    assert "as distilled" in ditto("model", "import", student, "--name", "student")
    checkpoint = load_checkpoint(student)
    description, weights = import_calibrated(checkpoint, "student", embeddings="public")
    assert description.embeddings == "public" and description.ranges == load_calibrated(checkpoint).ranges
    assert "embeddings" not in weights or description.preset == "ditto"
    ditto("model", "import", student, "--preset", "puma", code=2)


def test_ranges_of_other_weights_are_refused(student: Path, directory: Path, tmp_path: Path) -> None:
    stale = shutil.copytree(student, tmp_path / "stale")
    tensors = load_file(stale / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, stale / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="other weights"):
        import_calibrated(load_checkpoint(stale), "x")
    assert "--calibrate" in ditto("model", "import", stale, code=13)
    assert "--calibrate" in ditto("model", "import", directory, code=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "another version"),
        ({"description": {}}, "another version"),
        ({"description": {"format": 6}}, "architecture: Field required"),
        ({"more": 1}, "not what ditto writes"),
        ({"description": None}, "JSON object"),
    ],
)
def test_a_damaged_file_is_refused(student: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    damaged = shutil.copytree(student, tmp_path / "damaged")
    document = json.loads((damaged / NAME).read_text())
    (damaged / NAME).write_text(json.dumps(document | change))
    with pytest.raises(BadCheckpoint, match=said):
        load_calibrated(load_checkpoint(damaged))
    layer = document["description"]["ranges"]["layers"][0]
    layer["norm1"]["variance"][0] = 1e-300  # allowed, and no type has room for it
    (damaged / NAME).write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match="do not compile"):
        import_calibrated(load_checkpoint(damaged), "x")
    (damaged / NAME).write_text("[" * 100_000)
    with pytest.raises(BadCheckpoint, match=NAME):
        load_calibrated(load_checkpoint(damaged))

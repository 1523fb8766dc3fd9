"""Fine-tuning encoders on labelled texts: the order, stopping and going on, the checkpoint, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ditto.cli import app
from ditto.errors import BadCheckpoint, EmptyText, UsageError
from ditto.models import import_model, load_checkpoint
from ditto.models.tokenizer import Tokenizer
from ditto.train.adamw import learning_rate
from ditto.train.batches import Labelled, LengthOrder, by_length
from ditto.train.data import TASKS, Example, Task, task_of
from ditto.train.labelled import LabelTrainer, Settings, dropping, start
from ditto.train.objective import Objective
from ditto.train.run import Run
from ditto.train.seeds import generator

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip("transformers")

WORDS = "good fine nice bad poor dull film plot a the very is".split()
SENSE = Task("classify", "accuracy", ("bad", "good"))
NEAR = Task("regress", "spearman", most=5.0, pairs=True)
OBJECTIVES = {"classify": Objective(SENSE), "regress": Objective(NEAR), "mean": Objective(NEAR, "mean")}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with its pooler, and a vocabulary of whole words."""
    path = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        vocab_size=len(vocabulary), max_position_embeddings=24, initializer_range=0.1,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return path


def sentence(i: int) -> str:
    """Some words of which the last one tells whether it is good."""
    filling = [WORDS[6 + (i * k) % 6] for k in range(1, 2 + i % 7)]
    return " ".join([*filling, WORDS[(i * 5) % 3 + 3 * (i % 2)]])


SENTENCES = [Example(sentence(i), float(1 - i % 2)) for i in range(40)]
PAIRS = [Example((sentence(i), sentence(i * 3 + i // 20)), 5.0 if i < 20 else 1.0 + i % 2) for i in range(40)]


def examples(objective: Objective) -> list[Example]:
    return PAIRS if objective.task.pairs else SENTENCES


def table(path: Path, rows: list[Example]) -> Path:
    pairs = isinstance(rows[0].text, tuple)
    lines = [",".join([*(row.text if isinstance(row.text, tuple) else (row.text,)), f"{row.label:g}"]) for row in rows]
    path.write_text("\n".join(["text,text2,label" if pairs else "text,label", *lines]) + "\n")
    return path


def trainer(encoder: Path, objective: Objective, **other: Any) -> LabelTrainer:
    options = {"steps": 9, "batch": 8, "context": 12, "lr": 3e-3, "seed": 5, "validate_every": 3}
    settings = Settings(**options | other)  # type: ignore[arg-type]
    rows = Labelled(Tokenizer.load(encoder), examples(objective), objective, settings.context)
    return LabelTrainer(start(encoder, objective, settings.seed, 2.5), objective, rows, rows, settings)


def ditto(*args: object, code: int = 0) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, ["finetune", *map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else {}, result.stderr


# --- texts and their order


def test_an_epoch_takes_every_example_once_in_batches_of_like_lengths() -> None:
    lengths = [5 + (37 * i) % 50 for i in range(203)]
    order = LengthOrder(lengths, 4, seed=7)
    assert order.batches == 51
    first, second = ([order.at(step) for step in range(at, at + 51)] for at in (0, 51))
    assert sorted(map(len, first)) == [3] + 50 * [4] and first != second
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(203))
    spread = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in first) / 51
    assert spread < 6  # of 49; 64 examples are sorted together: 4 of them span 3 on average
    shortest = [min(lengths[i] for i in batch) for batch in first]
    assert shortest != sorted(shortest), "batches come in an order of their own"
    again = LengthOrder(lengths, 4, seed=7)
    assert [again.at(step) for step in (60, 3)] == [second[9], first[3]]
    assert LengthOrder(lengths, 4, seed=8).at(0) != first[0]
    assert [len(batch) for batch in by_length(lengths, 100)] == [100, 100, 3]


def test_rows_are_cut_and_as_wide_as_the_longest(encoder: Path) -> None:
    words, cpu = Tokenizer.load(encoder), torch.device("cpu")
    long = ("the film is good", "a plot " * 12)
    rows = Labelled(words, [Example("the film", 1), Example("film", 0)], Objective(SENSE), 24)
    batch, labels = rows.batch([1, 0], cpu)
    assert rows.lengths == [4, 3] and batch.shape == (2, 4) and labels.tolist() == [0, 1]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]] and batch.ids[0].tolist() == [2, 11, 3, 3]
    together, _ = Labelled(words, [Example(long, 1)], Objective(NEAR), 12).batch([0], cpu)
    assert together.shape == (1, 12) and together.types.sum() == 6 and int(together.ids[0, -1]) == 3
    apart, _ = Labelled(words, 2 * [Example(long, 1)], Objective(NEAR, "mean"), 12).batch([0, 1], cpu)
    assert apart.shape == (4, 12) and apart.mask.sum(1).tolist() == [6, 6, 12, 12]
    assert words.encode([long], 32).mask.sum() == 31, "the tokenizer cuts nothing otherwise"
    digests = {Labelled(words, some, Objective(SENSE), 24).digest() for some in (SENTENCES, SENTENCES[:-1])}
    assert len(digests) == 2
    with pytest.raises(EmptyText):
        Labelled(words, [], Objective(SENSE), 24)
    with pytest.raises(UsageError, match="too few"):
        Labelled(words, [Example(long, 1)], Objective(NEAR), 4)


def test_own_labels_are_classes_or_scores() -> None:
    def made(*labels: float, names: tuple[str, ...] = ()) -> Task:
        return task_of("classify", [Example("text", label) for label in labels], names)

    assert made(0, 2, 1).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert made(0, 1, names=("no", "yes", "perhaps")).labels == ("no", "yes", "perhaps")
    for labels, names in (((0.5, 1), ()), ((-1, 1), ()), ((0, 1e9), ()), ((0, 0), ()), ((0, 2), ("a", "b")),
                          ((0, 1), ("a", "a"))):  # fmt: skip
        with pytest.raises(UsageError, match=r"label|classes"):
            made(*labels, names=names)
    assert task_of("regress", PAIRS) == Task("regress", "spearman", most=5.0, pairs=True)
    with pytest.raises(UsageError, match="pairs"):
        task_of("regress", [*PAIRS, *SENTENCES])
    with pytest.raises(UsageError, match="all scores"):
        task_of("regress", [Example("text", 0)])


# --- the start, the steps


def test_what_a_checkpoint_has_of_a_head_is_kept(encoder: Path, tmp_path: Path) -> None:
    raw = load_file(encoder / "model.safetensors")
    made = start(encoder, OBJECTIVES["classify"], 1)
    assert made.class_name == "BertForSequenceClassification" and made.dimensions.labels == ("bad", "good")
    assert torch.equal(made.tensors["pooler.weight"], raw["pooler.dense.weight"])
    assert made.tensors["classifier.weight"].shape == (2, 16) and not made.tensors["classifier.bias"].any()
    assert 0.005 < float(made.tensors["classifier.weight"].std()) < 0.05
    same, other = (start(encoder, OBJECTIVES["classify"], seed).tensors["classifier.weight"] for seed in (1, 2))
    assert torch.equal(same, made.tensors["classifier.weight"]) and not torch.equal(other, same)
    score = start(encoder, OBJECTIVES["regress"], 1, 2.5)
    assert score.tensors["classifier.bias"].tolist() == [2.5] and score.dimensions.labels == ("score",)
    assert start(encoder, OBJECTIVES["mean"], 1).class_name == "BertModel"
    trainer(encoder, OBJECTIVES["classify"]).write(tmp_path)  # and goes on from a head of its own
    again = start(tmp_path, OBJECTIVES["classify"], 9).tensors["classifier.weight"]
    assert torch.equal(again, trainer(encoder, OBJECTIVES["classify"]).tensors["classifier.weight"].detach())
    save_file(raw | {"pooler.dense.bias": torch.full((16,), torch.nan)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((encoder / "config.json").read_bytes())
    with pytest.raises(BadCheckpoint, match="pooler"):
        start(tmp_path, OBJECTIVES["classify"], 1)


def test_dropout_follows_from_seed_and_step() -> None:
    x = torch.ones(100, 100, requires_grad=True)
    y = dropping(0.25, generator(1, "step 2"))(x)
    assert y.detach().unique().tolist() == pytest.approx([0, 4 / 3]) and abs(float(y.detach().mean()) - 1) < 0.03
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())
    assert torch.equal(y, dropping(0.25, generator(1, "step 2"))(x))
    assert not torch.equal(y, dropping(0.25, generator(1, "step 3"))(x))
    assert dropping(0.0, generator(1, 2))(x) is x


def test_learning_rates() -> None:
    def rates(course: Any, final: float = 0.0) -> list[float]:
        return [learning_rate(step, 10, 1.0, 2, course, final) for step in range(10)]

    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert rates("cosine", 0.1)[6] == pytest.approx(0.55) and min(rates("cosine", 0.1)[1:]) > 0.1
    assert rates("constant") == [0.5] + 9 * [1.0]


# --- stopping and going on


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(encoder: Path, tmp_path: Path, name: str) -> None:
    objective = OBJECTIVES[name]
    whole = Run(trainer(encoder, objective), tmp_path / "whole")
    assert whole.go(lambda: False)
    for stop in (1, 3, 9):
        parts = Run(trainer(encoder, objective), tmp_path / "parts")
        left = iter(range(stop))
        if not parts.go(lambda left=left: next(left, None) is None):  # type: ignore[misc]
            parts.validate_early()
    assert parts.finished and parts.trainer.at == whole.trainer.at and parts.trainer.at.best is not None
    for key, tensor in whole.trainer.state().items():
        assert torch.equal(tensor, parts.trainer.state()[key]), key
    kept = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(tensor, kept[1][key]) for key, tensor in kept[0].items())


def test_other_settings_are_refused(encoder: Path, tmp_path: Path) -> None:
    Run(trainer(encoder, OBJECTIVES["regress"]), tmp_path).save()
    for objective, other, says in (
        ("regress", {"dropout": 0.2}, r"--dropout: 0\.1, now 0\.2"),
        ("regress", {"schedule": "cosine"}, "--schedule"),
        ("mean", {}, "--pooling; the model's class"),
    ):
        with pytest.raises(UsageError, match=says):
            Run(trainer(encoder, OBJECTIVES[objective], **other), tmp_path)
    with pytest.raises(UsageError, match="24 positions"):
        trainer(encoder, OBJECTIVES["regress"], context=25)


def test_the_better_metric_is_kept(encoder: Path) -> None:
    made = trainer(encoder, OBJECTIVES["classify"])
    assert made.better(0.9, 0.8) and not made.better(0.8, 0.8)


# --- the checkpoint and the command

FAST = ("--lr", 5e-3, "--batch", 8, "--context", 16, "--validations", 2)


def answers_of(directory: Path, texts: list[Any]) -> torch.Tensor:
    """What transformers computes, of the class that the checkpoint names."""
    config = json.loads((directory / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(directory).eval()
    batch = Tokenizer.load(directory).encode(texts, 24)
    with torch.inference_mode():
        out = model(batch.ids, attention_mask=batch.mask, token_type_ids=batch.types)
    if "logits" in out:
        return out.logits
    weights = batch.mask[..., None]
    return (out.last_hidden_state * weights).sum(1) / weights.sum(1)


def imported(directory: Path, texts: list[Any]) -> None:
    """`model import` takes it, and its fp32 reference answers as transformers do."""
    checkpoint = load_checkpoint(directory)
    description, weights = import_model(checkpoint, "m", texts[:4])
    assert description.architecture == checkpoint.class_name and weights
    reference = torch.tensor(checkpoint.reference(checkpoint.tokenizer().encode(texts, 24)))
    assert torch.allclose(reference, answers_of(directory, texts), atol=1e-5)


def test_a_classifier_learns_and_transformers_read_it(encoder: Path, tmp_path: Path) -> None:
    file, texts = table(tmp_path / "a.csv", SENTENCES), [example.text for example in SENTENCES]
    common = ("--task", "classify", "--from", encoder, "--train", file, "--valid", file, "--test", file, *FAST)
    done, _ = ditto(*common, "--labels", "bad,good", "--steps", 40, "--out", tmp_path / "out")
    assert done["finished"] and done["metric"] == "accuracy" and done["valid"] == done["test"] == 1.0
    assert done["architecture"] == "BertForSequenceClassification" and done["examples_per_second"] > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["problem_type"] == "single_label_classification"
    logits = answers_of(tmp_path / "out", texts)
    assert logits.argmax(1).tolist() == [int(example.label) for example in SENTENCES]
    imported(tmp_path / "out", texts)
    again, _ = ditto(*common, "--labels", "bad,good", "--steps", 40, "--out", tmp_path / "out")
    assert again["finished"] and again["valid"] == done["valid"] and again["examples_per_second"] == 0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_score_of_pairs(encoder: Path, tmp_path: Path, pooling: str) -> None:
    file, texts = table(tmp_path / "a.csv", PAIRS), [example.text for example in PAIRS]
    done, _ = ditto(
        *("--task", "regress", "--pooling", pooling, "--from", encoder, "--train", file, "--valid", file, *FAST),
        *("--epochs", 2, "--out", tmp_path / "out"),
    )
    assert done["step"] == done["steps"] == 10 and done["metric"] == "spearman" and done["valid"] > 0.3
    checkpoint = load_checkpoint(tmp_path / "out")
    if pooling == "cls":
        assert checkpoint.class_name == "BertForSequenceClassification" and checkpoint.dimensions.labels == ("score",)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "regression"
        imported(tmp_path / "out", texts)
    else:
        assert checkpoint.class_name == "BertModel" and not checkpoint.dimensions.labels
        imported(tmp_path / "out", [text for pair in texts for text in pair])
        first, second = (answers_of(tmp_path / "out", [text[part] for text in texts]) for part in (0, 1))
        cosines = 5 * torch.nn.functional.cosine_similarity(first, second)
        made = trainer(encoder, OBJECTIVES["mean"], context=16)
        made.load(checkpoint.tensors)
        batch, _ = made.train.batch(range(len(PAIRS)), made.device)
        assert torch.allclose(made.answers(batch)[:, 0], cosines, atol=1e-5)


def test_a_data_set_by_name(encoder: Path, tmp_path: Path) -> None:
    import gzip

    rows = "\n".join(["label\tcontent", *(f"{label:g}\t{text}" for text, label in SENTENCES)]) + "\n"
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "sst2" / "dev.tsv").write_text(rows)
    common = ("--task", "sst2", "--data", tmp_path, "--from", encoder, "--out", tmp_path / "out", *FAST, "--steps", 4)
    paused, _ = ditto(*common, "--minutes", 0)
    assert paused["step"] == 0 and not paused["finished"] and 0 <= paused["valid"] <= 1
    done, _ = ditto(*common)
    assert done["step"] == 4 and done["finished"]
    assert load_checkpoint(tmp_path / "out").dimensions.labels == TASKS["sst2"].labels


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--from": None}, 2, "needs --from CHECKPOINT"),
        ({"--from": "nowhere"}, 13, "config.json"),
        ({"--train": None}, 2, "needs --train FILE and --valid FILE"),
        ({"--train": "absent.csv"}, 2, "absent.csv"),
        ({"--train": "header.csv"}, 2, "no line below the header"),
        ({"--valid": "pairs.csv"}, 2, "pairs in another"),
        ({"--data": "."}, 2, "--data is not for --task classify"),
        ({"--layers": 2}, 2, "--layers is not for --task classify"),
        ({"--pooling": "mean"}, 2, "--pooling is not for --task classify"),
        ({"--labels": "one"}, 2, "label 1 has no name"),
        ({"--context": 99}, 2, "24 positions"),
        ({"--epochs": 1}, 2, "one of --epochs and --steps"),
        ({"--task": "regress", "--labels": "a,b"}, 2, "are for --task classify"),
        ({"--task": "regress", "--pooling": "mean"}, 2, "a column text2 is needed"),
        ({"--task": "sst2"}, 2, "--train is not for --task sst2"),
        ({"--task": "sst2", "--train": None, "--valid": None}, 2, "needs --data DIR"),
        ({"--task": "sst2", "--train": None, "--valid": None, "--data": "."}, 2, "sst2/train.tsv.gz"),
        ({"--task": "lm", "--dropout": 0.1}, 2, "--dropout is not for --task lm"),
    ],
)
def test_errors(
    change: dict[str, Any], code: int, says: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(Path("a.csv"), SENTENCES)
    table(Path("pairs.csv"), PAIRS)
    Path("header.csv").write_text("text,label\n")
    options = {"--task": "classify", "--from": encoder, "--train": "a.csv", "--valid": "a.csv", "--steps": 1}
    options |= {"--out": "out"} | change
    _, stderr = ditto(*(part for name, x in options.items() if x is not None for part in (name, x)), code=code)
    assert says in " ".join(stderr.split())
    assert not Path("out").exists()


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="GPT2LMHeadModel is no encoder: one of Bert"):
        start(tmp_path, OBJECTIVES["classify"], 0)

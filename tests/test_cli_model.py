"""From a checkpoint's directory to an answer, by the command line alone, on real processes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import beside
from safetensors.torch import load_file, save_file
from test_trace import check_trace
from typer.testing import CliRunner

from ditto.cli import app, infer, jobs
from ditto.client import store
from ditto.client.local_cluster import Cluster, _free_ports, home
from ditto.models import architecture_of

WORDS = "the a cat dog sat ran on under mat tree and quickly slowly red green two men play music .".split()
CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_act": "gelu",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 5 + len(WORDS),
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "bad", "1": "good"},
}


def run(*args: str, code: int = 0) -> tuple[Any, str]:
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else None, result.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with random weights, as Hugging Face writes them."""
    path = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    architecture = architecture_of("BertForSequenceClassification")
    for name, shape in architecture.expected(architecture.dimensions(CONFIG)).items():
        if "LayerNorm" in name:
            tensors[name] = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            tensors[name] = 0.1 * torch.randn(shape, generator=generator)
    prefixed = {n if n.startswith("classifier") else f"bert.{n}": t for n, t in tensors.items()}
    save_file(prefixed, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (path / "texts.txt").write_text(
        "the cat sat on the mat .\na dog ran\n\ntwo men play music under the green tree .\n"
    )
    return path


@pytest.fixture(scope="module")
def shared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The checkpoint imported as `tiny`, on a running cluster that holds its shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DITTO_CONFIG", raising=False)
        made, _ = run(
            "model", "import", str(checkpoint), "--calibrate", str(checkpoint / "texts.txt"), "--name", "tiny"
        )
        assert made["architecture"] == "BertForSequenceClassification"
        Cluster(home()).configure(ports=_free_ports())
        run("cluster", "up")
        try:
            assert run("model", "share", "tiny")[0]["shared"]
            yield "tiny"
        finally:
            run("cluster", "down")


def test_infer_matches_plaintext(shared: str) -> None:
    answer, _ = run(
        "infer", "--model", shared, "--text", "the dog sat .", "--text", "two red men play music .", "--check"
    )
    assert (answer["model"], answer["preset"], answer["network"], answer["seq"]) == ("tiny", "ditto", "loopback", 16)
    assert len(answer["output"]) == len(answer["plaintext_output"]) == 2
    assert len(answer["output"][0]) == 2
    assert answer["max_abs_error"] < 0.05
    assert [row["name"] for row in answer["layers"]] == ["embeddings", "layer 0", "head"]
    for key in ("rounds", "seconds"):
        assert answer["online"][key] == pytest.approx(sum(row["online"][key] for row in answer["layers"]))
    for party in (0, 1):
        assert answer["online"]["bytes_sent"][party] == sum(
            row["online"]["bytes_sent"][party] for row in answer["layers"]
        )
        counted = answer["traffic"][f"party{party}"]
        rounds, sent = beside()
        assert counted["sent"]["payload"] == answer["online"]["bytes_sent"][party] + sent
        assert counted["from_dealer"]["payload"] == answer["offline"]["bytes_to_party"][party] > 0
        assert counted["sent"]["framing"] > 0 and counted["rounds"] == answer["online"]["rounds"] + rounds


def test_what_is_in_stock_is_taken(shared: str) -> None:
    said, _ = run("deal", "--model", shared, "--seq", "16", "--count", "2")
    assert (said["jobs"], said["tokens"]) == (2, 1) and min(said["bytes"]) > 1000
    status, _ = run("cluster", "status")
    rows = [(row["role"], row["seq"], row["batch"], row["jobs"]) for row in status["stock"] if row["model"] == shared]
    assert sorted(rows) == [("party0", 16, 1, 2), ("party1", 16, 1, 2)]
    shown = CliRunner().invoke(app, ["cluster", "status"])
    assert f"in stock: {shared}, 1 x 16 tokens: 2 jobs" in shown.stdout
    asks = ["infer", "--model", shared, "--text", "the dog sat .", "--text", "two red men play music .", "--batch", "1"]
    answer, _ = run(*asks)
    assert answer["stock"] is True and (answer["stocked_jobs"], answer["jobs"]) == (2, 2)
    shown = CliRunner().invoke(app, ["infer", "--model", shared, "--text", "the dog sat ."])
    assert "dealt before" not in shown.stdout and shown.exit_code == 0
    assert CliRunner().invoke(app, ["deal", "--model", shared, "--seq", "16", "--tokens", "3"]).exit_code == 2
    assert CliRunner().invoke(app, ["deal", "--model", shared, "--seq", "4000"]).exit_code == 2


def test_infer_writes_its_report(shared: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "cost.html", tmp_path / "rounds.json"
    files = ["--report", str(path), "--trace", str(trace)]
    answer, _ = run("infer", "--model", shared, "--text", "two red men play music .", *files)
    check_trace(json.loads(trace.read_text()), answer)
    text = path.read_text() + trace.read_text()
    assert f'<data value="{answer["wall_seconds"]!r}">' in text and "loopback (measured)" in text
    shown = [repr(abs(value)) for value in answer["output"][0]]
    assert "red men" not in text and not any(value in text for value in shown if len(value) > 8)


def test_nine_sentences_are_two_jobs(shared: str, tmp_path: Path) -> None:
    one = run("infer", "--model", shared, "--text", "a cat ran")[0]
    (tmp_path / "nine.txt").write_text("a cat ran\n" * 9)
    nine = run("infer", "--model", shared, "--file", str(tmp_path / "nine.txt"))[0]
    assert nine["texts"] == 9
    assert nine["online"]["rounds"] == 2 * one["online"]["rounds"] and (one["jobs"], nine["jobs"]) == (1, 2)
    for answer in (one, nine):  # of several jobs, the first
        shown = sum(len(layer["rounds"]["start"]) for layer in answer["rounds_timeline"]["layers"])
        assert shown == one["online"]["rounds"]
    for party, counted in enumerate(nine["traffic"].values()):
        rounds, sent = beside(jobs=2)
        assert counted["rounds"] == nine["online"]["rounds"] + rounds
        assert counted["sent"]["payload"] == nine["online"]["bytes_sent"][party] + sent
    assert all(result == pytest.approx(one["output"][0], abs=0.05) for result in nine["output"])


def test_a_file_is_written_as_answers_come_and_gone_on_with(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the first of three jobs; then the rest, and nothing twice. What is too long is cut if asked."""
    texts, out = tmp_path / "texts.txt", tmp_path / "answers.jsonl"
    texts.write_text("a cat ran\n\n" + "cat " * 40 + "\nthe dog sat\ttwo men\n\nred\nthe mat .\n")
    how = ["--model", shared, "--file", str(texts), "--out", str(out), "--batch", "2"]
    said = run("infer", *how, code=10)[1].replace("\n", "")
    assert "texts.txt, line 3: text of 42 tokens" in said and "--truncate" in said and out.exists() is False
    asked: list[list[int]] = []

    def ask(client: Any, description: Any, job: Any, *rest: Any) -> Any:
        asked.append(job.places)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(client, description, job, *rest)

    answer = jobs.answer
    with monkeypatch.context() as patch:
        patch.setattr(infer, "answer", ask)
        said = run("infer", *how, "--truncate", code=130)[1].replace("\n", " ")
    assert "stopped after 2 of 5 texts; with --resume" in said
    whole = out.read_text()
    assert [json.loads(line)["line"] for line in whole.splitlines()] == [3, 1], "the longest first"
    out.write_text(whole + '{"line": 4, "lab')
    assert "holds something already" in run("infer", *how, "--truncate", code=2)[1].replace("\n", " ")
    document = run("infer", *how, "--truncate", "--resume", "--check")[0]
    assert (document["texts"], document["answered_before"], document["jobs"]) == (3, 2, 2)
    assert document["max_abs_error"] < 0.05 and document["blank_lines"] == 2 and "output" not in document
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().startswith(whole) and sorted(row["line"] for row in rows) == [1, 3, 4, 6, 7]
    assert [row["line"] for row in rows if row.get("truncated")] == [3]
    for row in rows:
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get) and len(row["values"]) == 2
        assert row["in_range"] in (True, False) and row["model"] == shared and row["seconds"] > 0
        assert row["version"] == store.load(shared).version[:16] and len(row["job"]) == 8
    assert "two men" not in out.read_text() and "cat " not in out.read_text()
    before = out.read_text()
    again, said = run("infer", *how, "--truncate", "--resume", "--report", str(tmp_path / "cost.html"))
    assert "nothing was asked, so there is no report" in said and not (tmp_path / "cost.html").exists()
    assert (again["texts"], again["jobs"], out.read_text()) == (0, 0, before), "there was nothing to do"
    texts.write_text(texts.read_text() + "more\n")
    assert "another input file" in run("infer", *how, "--truncate", "--resume", code=2)[1].replace("\n", " ")
    shown = CliRunner().invoke(app, ["infer", "--model", shared, "--file", "-", "--jsonl"], input="a cat ran\n\nred\n")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert shown.exit_code == 0 and [row["line"] for row in rows] == [1, 3]
    assert "2 texts; 1 blank line skipped; 1 job, padded to 16 tokens" in shown.stderr and "predicted: " in shown.stderr


def test_every_second_of_a_command(shared: str) -> None:
    """The parts are disjoint and their sum is the whole; a job's are in them."""
    document = run("infer", "--model", shared, "--text", "a cat ran", "--text", "red", "--check")[0]
    spent = document["spent"]
    assert sum(spent["parts"].values()) == pytest.approx(spent["seconds"])
    assert min(spent["parts"].values()) >= 0 and spent["seconds"] >= document["wall_seconds"]
    named = {
        "start", "reading", "imports", "connection", "model", "tokenizing", "program", "sharing", "queue", "offline",
        "online", "reveal", "plaintext check", "other",
    }  # fmt: skip
    assert named <= spent["parts"].keys()
    for phase in ("offline", "online"):  # the client's view of it: what the servers say, or less where they overlap
        assert 0 < spent["parts"][phase] <= document[phase]["seconds"] * (1 + 1e-9)
    assert [set(row) for row in document["answers"]] == [{"label", "probabilities"}] * 2


@pytest.mark.parametrize(
    "args",
    [
        ["--out", "x", "--text", "a"], ["--jsonl", "--text", "a"], ["--file", "-", "--out", "x", "--jsonl"],
        ["--file", "-", "--resume"], ["--file", "-", "--jsonl"], ["--file", "-", "--batch", "0"],
    ],
)  # fmt: skip
def test_options_of_files(args: list[str]) -> None:
    assert CliRunner().invoke(app, ["infer", "--model", "absent", "--json", *args], input="a").exit_code == 2


def test_pairs_and_texts(shared: str, tmp_path: Path) -> None:
    first, second = "the cat sat .", "two men play music ."
    (tmp_path / "mixed.txt").write_text(f"{first}\t{second}\n{first}\n{second}\t{first}\n")
    answer, _ = run(
        "infer", "--model", shared, "--text", first, "--pair", second, "--file", str(tmp_path / "mixed.txt"), "--check"
    )
    assert (answer["texts"], answer["seq"], answer["jobs"]) == (4, 16, 1)
    assert answer["max_abs_error"] < 0.05
    plain = answer["plaintext_output"]
    assert plain[0] == pytest.approx(plain[1], abs=1e-5)
    assert not any(plain[0] == pytest.approx(other, abs=1e-3) for other in plain[2:]), "both count, and their order"
    assert first not in json.dumps(answer) and second not in json.dumps(answer)
    shown = CliRunner().invoke(app, ["infer", "--model", shared, "--text", first, "--pair", second])
    assert shown.exit_code == 0 and shown.stdout.startswith(f"{first}\n+ {second}\n")


def test_model_list(shared: str) -> None:
    (row,) = run("model", "list")[0]
    assert row.pop("owner").startswith("client")
    assert row.pop("digest") == row.pop("shared_digest") == store.load("tiny").version
    assert row == {
        "name": "tiny",
        "architecture": "BertForSequenceClassification",
        "preset": "ditto",
        "max_length": 32,
        "imported": True,
        "shared": True,
    }


def test_bad_texts_and_the_next_request(shared: str) -> None:
    assert "32" in run("infer", "--model", shared, "--text", "cat " * 31, code=10)[1]
    run("infer", "--model", shared, "--text", "fine", "--text", "\t", code=11)
    run("infer", "--model", "absent", "--text", "fine", code=12)
    run("infer", "--model", shared, "--text", "a cat ran")


def test_public_embeddings(shared: str, checkpoint: Path) -> None:
    texts = str(checkpoint / "texts.txt")
    run("model", "import", str(checkpoint), "--calibrate", texts, "--name", "public", "--embeddings", "public")
    run("model", "share", "public")
    answer = run("infer", "--model", "public", "--text", "the dog sat .", "--check")[0]
    assert answer["embeddings"] == "public"
    assert answer["max_abs_error"] < 0.05


def test_choices_are_fixed_at_import(shared: str, checkpoint: Path, tmp_path: Path) -> None:
    """The servers compile what the planner chose: the rounds and bytes that it printed are those of the job."""
    machine = tmp_path / "machine.json"
    machine.write_text('{"cores": 2, "rates": {"Open/8": {"deal": RATE, "prepare": RATE, "online": RATE}}}'.replace(
        "RATE", '{"step": 2e-6, "unit": 1e-9}'))  # fmt: skip
    how = ["--network", "wan", "--seq", "16", "--machine", str(machine), "--tolerance", "0.05"]
    texts = str(checkpoint / "texts.txt")
    run("model", "import", str(checkpoint), "--calibrate", texts, "--name", "chosen", *how)
    plan = run("plan", "--model", "chosen", *how)[0]
    assert plan["imported"] == plan["choices"] != [{}], "something was better than what the preset does"
    again = run("plan", "--model", str(checkpoint), "--calibrate", texts, *how)[0]
    assert again["choices"] == plan["choices"]
    run("model", "share", "chosen")
    answer = run("infer", "--model", "chosen", "--text", "the dog sat .", "--no-range-check", "--check")[0]
    assert answer["online"]["rounds"] == plan["planned"]["rounds"] <= plan["own"]["rounds"]
    assert plan["planned"] != plan["own"]
    assert answer["online"]["bytes_sent"] == [plan["planned"]["bytes_sent"]] * 2
    assert sum(answer["offline"]["bytes_to_party"]) == plan["planned"]["bytes_from_dealer"]
    assert answer["max_abs_error"] < 0.05


def test_an_import_reports(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of the answers' loss is spent, and the report says what it won; the model is stored as chosen. 3 s."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    texts, report = str(checkpoint / "texts.txt"), tmp_path / "report.json"
    args = ("model", "import", str(checkpoint), "--calibrate", texts, "--name", "tried", "--seq", "16")
    run(*args, "--sensitivity", "0.001", "--report", str(report), "--held-out", texts)
    found = json.loads(report.read_text())
    assert [step["step"] for step in found["steps"]] == ["calibration", "choices"] and found["held_out"]
    before, after = (2 * step["bytes_sent"] + step["bytes_from_dealer"] for step in found["steps"])
    assert after < before
    assert found["steps"][1]["loss"] <= found["steps"][0]["loss"] + 0.001, "the same texts as those of the calibration"
    kept = json.loads((tmp_path / "home" / "models" / "tried" / "description.json").read_text())["choices"]
    assert [{k: v for k, v in kept[0].items() if v}] == [found["layers"][1]["choices"]]
    run(*args, "--tolerance", "0.9", "--report", str(tmp_path / "report.md"))
    assert "## layer 0" in (tmp_path / "report.md").read_text()
    run(*args, "--report", str(tmp_path / "report.pdf"), code=2)
    run(*args, "--held-out", texts, code=2)
    run(*args, "--report", str(report), "--held-out", str(tmp_path / "absent"), code=2)


@pytest.mark.parametrize(("damage", "code"), [("tensor", 13), ("config", 13), ("architecture", 14), ("preset", 2)])
def test_bad_checkpoints(
    checkpoint: Path, tmp_path: Path, damage: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    tensors, config = load_file(checkpoint / "model.safetensors"), dict(CONFIG)
    (tmp_path / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    if damage == "tensor":
        del tensors["bert.encoder.layer.0.output.dense.weight"]
    if damage == "config":
        del config["hidden_size"]
    if damage == "architecture":
        config["architectures"] = ["ResNetModel"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    preset = "nonsense" if damage == "preset" else "ditto"
    texts = str(checkpoint / "texts.txt")
    arguments = ("--calibrate", texts, "--name", "bad", "--preset", preset)
    _, stderr = run("model", "import", str(tmp_path), *arguments, code=code)
    if damage == "tensor":
        assert "encoder.layer.0.output.dense.weight" in stderr
    assert run("model", "list")[0] == []

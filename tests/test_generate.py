"""`ditto generate`: from a GPT-2 checkpoint's directory to text, by the command line, on real processes."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import beside
from typer.testing import CliRunner

from ditto.cli import app
from ditto.cli.generating import interruptible
from ditto.client.local_cluster import Cluster, _free_ports, home
from ditto.client.sampling import Sampler
from ditto.models import Checkpoint, Plan, load_checkpoint
from ditto.models.compiled import program_for
from ditto.models.export import save_gpt2
from ditto.models.gpt2.floats import continue_texts
from ditto.models.tokenizer import Tokenizer
from ditto.train.language import new_dimensions, new_weights

ALPHABET = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
WORDS = [*ALPHABET, "<|endoftext|>"]
SMALL = new_dimensions(len(WORDS), layers=1, hidden=64, heads=2, context=48)
PROMPTS = ("hello", "a somewhat longer prompt")


def run(*args: str, code: int = 0) -> tuple[Any, str]:
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else None, result.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with random weights, large enough that its logits are apart."""
    path = tmp_path_factory.mktemp("gpt2")
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    weights = {name: w if "ln_" in name else 10 * w for name, w in new_weights(SMALL, 3).items()}
    save_gpt2(path, SMALL, weights, path)
    (path / "texts.txt").write_text("hello there, this is some text.\nand 1 more: (a) {b} c\nWHO? Me & you = us!\n")
    return path


@pytest.fixture(scope="module")
def shared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DITTO_CONFIG", raising=False)
        run("model", "import", str(checkpoint), "--calibrate", str(checkpoint / "texts.txt"), "--name", "small")
        Cluster(home()).configure(ports=_free_ports())
        run("cluster", "up")
        try:
            run("model", "share", "small")
            yield "small"
        finally:
            run("cluster", "down")


def prompts() -> list[str]:
    return [part for text in PROMPTS for part in ("--prompt", text)]


def margins(checkpoint: Checkpoint, text: str, count: int) -> list[float]:
    """How far the likeliest token is ahead at each step, in the float model."""
    ahead: list[float] = []

    def choose(logits: torch.Tensor) -> list[int]:
        best = logits[0].topk(2).values
        ahead.append(float(best[0] - best[1]))
        return Sampler().choose(logits)

    ids = checkpoint.tokenizer().encode_prompts([text], 40).ids[0, : len(text)].tolist()
    continue_texts(checkpoint.tensors, checkpoint.dimensions, [ids], count, choose)
    return ahead


def test_a_batch_of_prompts(shared: str, checkpoint: Path) -> None:
    answer, _ = run("generate", "--model", shared, *prompts(), "--max-new-tokens", "6", "--check")
    assert answer["in_range"] is True and answer["out_of_range_layers"] == []
    assert answer["prompts"] == list(PROMPTS) and (answer["texts"], answer["seq"]) == (2, 32)
    assert [len(tokens) for tokens in answer["output_tokens"]] == [6, 6] and answer["stopped_by"] == "length"
    # tokens agree as long as the float model's choice is clear
    loaded = load_checkpoint(checkpoint)
    for text, mine, theirs in zip(PROMPTS, answer["output_tokens"], answer["plaintext_tokens"], strict=True):
        clear = 0
        for ahead in margins(loaded, text, 6):
            if ahead < 0.3:
                break
            clear += 1
        assert mine[:clear] == theirs[:clear]
    assert answer["agreeing_tokens"] >= 6, "few clear choices: the test would not notice garbage"
    assert answer["output"] == [Tokenizer.load(checkpoint).decode(tokens) for tokens in answer["output_tokens"]]
    names = [row["name"] for row in answer["layers"]]
    assert names == ["embeddings", "layer 0", "head", *(f"token {i}" for i in range(2, 7))]
    later = answer["layers"][3:]
    assert answer["per_token"]["online"]["rounds"] == later[0]["online"]["rounds"] == later[-1]["online"]["rounds"]
    for party in (0, 1):
        sent = [row["online"]["bytes_sent"][party] for row in answer["layers"]]
        assert answer["prompt"]["online"]["bytes_sent"][party] == sum(sent[:3])
        assert answer["per_token"]["online"]["bytes_sent"][party] == pytest.approx(sum(sent[3:]) / 5)
        assert answer["online"]["bytes_sent"][party] == sum(sent)
        assert answer["traffic"][f"party{party}"]["sent"]["payload"] == sum(sent) + beside(stages=6)[1]
        assert sent[4] - sent[3] == sent[6] - sent[5] > 0, "a token's traffic grows with the attention row alone"
    assert answer["tokens_per_second"] > 0 and len(answer["token_seconds"]) == 6


def test_the_servers_choose(shared: str) -> None:
    """The same text without logits at the client; no output but a token."""
    mine, _ = run("generate", "--model", shared, "--prompt", PROMPTS[0], "--max-new-tokens", "4")
    theirs, _ = run("generate", "--model", shared, "--prompt", PROMPTS[0], "--max-new-tokens", "4", "--server-argmax")
    assert theirs["output_tokens"][0][0] == mine["output_tokens"][0][0]
    assert all(0 <= token < len(WORDS) for token in theirs["output_tokens"][0])
    assert "argmax" in {row["operation"] for row in theirs["operations"]}
    assert theirs["online"]["rounds"] > mine["online"]["rounds"]


def test_the_text_ends(shared: str, checkpoint: Path, tmp_path: Path) -> None:
    """A model whose likeliest token is the end of text says so at once, and the job ends as done."""
    endless = tmp_path / "ends"
    tensors = load_checkpoint(checkpoint).tensors
    tensors["ln_f.weight"] *= 0.05  # what is left of the hidden state does not matter
    tensors["ln_f.bias"] = tensors["wte.weight"][-1].clone()
    save_gpt2(endless, SMALL, tensors, checkpoint)
    run("model", "import", str(endless), "--calibrate", str(checkpoint / "texts.txt"), "--name", "ends")
    run("model", "share", "ends")
    answer, _ = run("generate", "--model", "ends", "--prompt", "hello", "--max-new-tokens", "8", "--exact-length")
    assert answer["seq"] == 5 and answer["stopped_by"] == "end of text"
    assert answer["output"] == [""] and answer["output_tokens"] == [[len(WORDS) - 1]]
    assert answer["per_token"] is None
    again, _ = run("generate", "--model", shared, "--prompt", "hello", "--max-new-tokens", "2")
    assert len(again["output_tokens"][0]) == 2, "the parties are free for the next job"
    status, _ = run("cluster", "status")
    assert status["throughput"]["failed"] == status["throughput"]["cancelled"] == 0


def test_narrower_types_cost_less(shared: str) -> None:
    usual, _ = run("generate", "--model", shared, "--prompt", "hello", "--max-new-tokens", "3")
    narrow, _ = run("generate", "--model", shared, "--prompt", "hello", "--max-new-tokens", "3", "--narrow-from", "2")
    dealt = [[sum(row["offline"]["bytes_to_party"]) for row in answer["layers"]] for answer in (usual, narrow)]
    text = (home() / "models" / "small" / "description.json").read_text()
    seq = usual["seq"]
    stated = [program_for(text, Plan(1, seq, 3, narrow_from=n, guard=True), 2).cost().dealer for n in (0, 2)]
    assert dealt[0][:4] == dealt[1][:4] and [row[4] for row in dealt] == stated and stated[1] < stated[0]


def test_streams_on_a_terminal(shared: str, tmp_path: Path) -> None:
    """Without --json: the prompt and its continuation on stdout as one text, the costs on stderr, the page on disk."""
    page, trace = tmp_path / "cost.html", tmp_path / "rounds.json"
    asked = ["generate", "--model", shared, "--prompt", "hello", "--max-new-tokens", "3", "--report", str(page)]
    result = CliRunner().invoke(app, [*asked, "--trace", str(trace)])
    assert "token 3" in page.read_text() and "hello" not in page.read_text()
    assert "layer 0" in trace.read_text() and "hello" not in trace.read_text()
    assert result.exit_code == 0 and result.stdout.startswith("hello")
    assert len(result.stdout.rstrip("\n")) == len("hello") + 3
    assert "tokens a second" in result.stderr and "each later token" in result.stderr


def test_refusals(shared: str) -> None:
    def refused(*args: str) -> str:
        return run("generate", "--model", shared, *args, code=2)[1]

    assert "nothing to continue" in refused()
    assert "temperature" in refused("--prompt", "a", "--temperature", "-1")
    assert "no --temperature" in refused("--prompt", "a", "--server-argmax", "--temperature", "1")
    assert "needs a --seed" in refused("--prompt", "a", "--check", "--temperature", "1")
    assert "ditto generate" in run("infer", "--model", shared, "--text", "a", code=2)[1]
    result = CliRunner().invoke(app, ["generate", "--model", shared, "--prompt", "a" * 60])
    assert result.exit_code not in (0, 1, 2) and "tokens" in result.stderr


def test_the_first_interrupt_waits() -> None:
    before = signal.getsignal(signal.SIGINT)  # not Python's own where the tests run in the background
    with interruptible() as stopping:
        assert not stopping
        signal.raise_signal(signal.SIGINT)
        assert stopping
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.current_thread() is threading.main_thread()

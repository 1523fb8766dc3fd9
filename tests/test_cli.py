"""The command line without a cluster: output, exit codes, the local store, sums of reports."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ditto.cli import app, report
from ditto.cli.app import COMMANDS, load
from ditto.cli.demo import calibration_texts
from ditto.client import store
from ditto.client.publication import with_files
from ditto.errors import EXIT_CODES, UnknownModel, UsageError
from ditto.models import random_model
from ditto.names import check_name

HERE = os.environ | {"PYTHONPATH": os.getcwd()}
TINY = random_model("bert-tiny", 1, 8)[0].model_copy(update={"name": "tiny"})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DITTO_CONFIG", raising=False)


def run(*args: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"


def save_tiny(tmp_path: Path) -> store.StoredModel:
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "vocab.txt").write_text(VOCABULARY)
    return store.save(TINY, {"w": torch.arange(6, dtype=torch.int64).reshape(2, 3)}, source)


def test_help_lists_every_exit_code() -> None:
    stdout, _ = run("--help")
    for code, meaning in EXIT_CODES.items():
        assert str(code) in stdout and meaning.split()[0] in stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["infer", "--text", "hi"], 2),
        (["nonsense"], 2),
        (["infer", "--model", "absent", "--text", "hi"], 12),
        (["infer", "--model", "tiny"], 2),
        (["infer", "--model", "tiny", "--file", "/nowhere"], 2),
        (["infer", "--model", "tiny", "--file", "x" * 300], 27),
        (["infer", "--model", "tiny", "--text", "fine", "--text", " "], 11),
        (["infer", "--model", "../escape", "--text", "hi"], 2),
        (["model", "import", ".", "--calibrate", "/nowhere"], 2),
        (["demo", "--similarity", "--text", "hi"], 2),
        (["demo", "--checkpoint", "."], 2),
        (["demo", "--text", " "], 11),
        (["model", "share", "absent"], 12),
        (["model", "list", "--config", "/nowhere.yaml"], 22),
    ],
)
def test_errors_have_their_own_exit_codes(args: list[str], code: int) -> None:
    stdout, stderr = run(*args, code=code)
    assert stdout == "" and stderr.strip()
    assert "Traceback" not in stderr


def test_certs_init() -> None:
    stdout, _ = run("certs", "init", "--host", "a.example", "--json")
    made = json.loads(stdout)
    assert made["hosts"] == ["localhost", "127.0.0.1", "a.example"]
    before = (Path(made["dir"]) / "ca.pem").read_bytes()
    run("certs", "init", code=2)
    assert (Path(made["dir"]) / "ca.pem").read_bytes() == before
    run("certs", "init", "--force")
    assert (Path(made["dir"]) / "ca.pem").read_bytes() != before


def test_cluster_status_and_down_when_nothing_runs() -> None:
    status = json.loads(run("cluster", "status", "--json")[0])
    assert not status["serving"]
    assert [p["state"] for p in status["processes"]] == ["stopped"] * 4
    assert json.loads(run("cluster", "down", "--json")[0])["stopped"] == []


def test_store_and_list(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    assert (model.dir / "weights.safetensors").stat().st_mode & 0o777 == 0o600
    assert store.load("tiny").description == with_files(TINY, {"vocab.txt": VOCABULARY.encode()}) == model.description
    assert torch.equal(store.load("tiny").weights()["w"], torch.arange(6).reshape(2, 3))
    (row,) = json.loads(run("model", "list", "--json")[0])
    shown = {key: row[key] for key in ("name", "architecture", "preset", "max_length")}
    assert shown == {"name": "tiny", "architecture": "BertModel", "preset": "ditto", "max_length": 512}
    with pytest.raises(UnknownModel, match="tiny"):
        store.load("other")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a\n"])
def test_names_are_not_paths(name: str) -> None:
    with pytest.raises(UsageError, match="at most 64"):
        check_name(name)


def test_a_name_may_have_64_characters() -> None:
    assert check_name("x" * 64) == "x" * 64


def row(name: str, seconds: float, rounds: int, sent: list[int]) -> dict[str, Any]:
    return {"name": name, "layer": 3, "online": {"seconds": seconds, "rounds": rounds, "bytes_sent": sent}}


def test_reports_add_up() -> None:
    a = {"layers": [row("x", 1.0, 2, [3, 4]), row("y", 1.0, 1, [1, 1])]}
    b = {"layers": [row("y", 0.5, 1, [2, 2]), row("x", 0.5, 2, [1, 0]), row("z", 1.0, 1, [0, 0])]}
    assert report.merge(a, b) == {
        "layers": [row("x", 1.5, 4, [4, 4]), row("y", 1.5, 2, [3, 3]), row("z", 1.0, 1, [0, 0])]
    }


def counts(n: int) -> dict[str, Any]:
    pairs = {key: {"payload": 100 * n + i, "framing": n} for i, key in enumerate(("sent", "received", "from_dealer"))}
    return {"rounds": n, **pairs}


def test_all_jobs_were_in_stock_or_not_all() -> None:
    yes, no = {"stock": True, "stocked_jobs": 1}, {"stock": False, "stocked_jobs": 0}
    assert report.merge(report.merge(yes, yes), yes) == {"stock": True, "stocked_jobs": 3}
    assert report.merge(yes, no) == report.merge(no, yes) == {"stock": False, "stocked_jobs": 1}


def test_traffic_adds_up_by_party() -> None:
    a, b = ({"traffic": {"party0": counts(n), "party1": counts(10 * n)}, "job": str(n)} for n in (1, 2))
    total = report.merge(a, b)
    assert total["job"] == "1"
    assert total["traffic"]["party0"] == {
        "rounds": 3,
        "sent": {"payload": 300, "framing": 3},
        "received": {"payload": 302, "framing": 3},
        "from_dealer": {"payload": 304, "framing": 3},
    }
    assert total["traffic"]["party1"]["sent"] == {"payload": 3000, "framing": 30}


def test_what_one_report_lacks_is_the_others() -> None:
    a: dict[str, Any] = {"traffic": {}, "layers": []}
    b = {"traffic": {"party0": counts(1)}, "layers": [row("x", 1.0, 1, [1, 1])]}
    assert report.merge(a, b) == report.merge(b, a) == b


def test_calibration_texts_are_varied() -> None:
    texts = calibration_texts()
    assert len(texts) >= 36 and len(set(texts)) == len(texts)
    assert min(len(t.split()) for t in texts) == 1 and max(len(t.split()) for t in texts) > 20


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    run("cluster", "status")
    from ditto.client.local_cluster import Cluster, _free_ports, home

    ports = _free_ports()
    Cluster(home()).configure(ports=ports)
    with socket.create_server(("127.0.0.1", ports["dealer"])):
        _, stderr = run("cluster", "up", code=24)
    assert str(ports["dealer"]) in stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says(name: str) -> None:
    command = load(name)
    assert " ".join((command.help or "").split("\n\n")[0].split()) == COMMANDS[name]
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_a_command_loads_what_it_needs() -> None:
    """The list of commands needs none of them, and no command's help needs what computes."""

    def loaded(script: str, *args: str) -> set[str]:
        lines = ("import contextlib, sys", "with contextlib.suppress(SystemExit):", f"    {script}")
        called = "\n".join((*lines, "print('loaded:', *sys.modules)"))
        done = subprocess.run(
            [sys.executable, "-c", called, *args], capture_output=True, text=True, check=True, env=HERE
        )
        return set(done.stdout.rpartition("loaded:")[2].split())

    for word in ("--help", "--version"):
        found = loaded("from ditto.cli import app; app()", word)
        assert "typer" in found and not {"torch", "numpy", "grpc", "cryptography", "pydantic", "yaml"} & found, word
        assert not any(name.startswith("ditto.client") for name in found)
    found = loaded("from ditto.cli.app import COMMANDS, load; list(map(load, COMMANDS))")
    assert {f"ditto.cli.{name}" for name in COMMANDS} <= found
    assert not {"torch", "numpy", "safetensors", "tokenizers", "matplotlib"} & found


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it is an error from here on
from typer.testing import CliRunner
from ditto.cli import app
for words in sys.argv[1:]:
    command, _, code = words.rpartition("=")
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == int(code), (command, result.exit_code, result.output, result.exception)
    assert command != "model list" or "tiny" in result.stdout, result.output
"""


def test_what_needs_no_tensor_needs_no_torch(tmp_path: Path) -> None:
    """Servers that do not run are named (16), and so is a missing configuration: no command ends for want of torch."""
    from ditto.client.local_cluster import Cluster, _free_ports, home

    def without_torch(*commands: str) -> None:
        here = HERE | {"DITTO_HOME": str(home())}
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *commands], check=True, timeout=60, env=here)

    save_tiny(tmp_path)
    without_torch(
        "model list=0", "cluster status=0", "cluster down=0", "model grant tiny --to bob=22", "certs init=0",
        "certs issue client --name bob=0", "plan --help=0", "infer --help=0",
    )  # fmt: skip
    Cluster(home()).configure(ports=_free_ports())
    client = home() / "configs" / "client.yaml"
    client.write_text(client.read_text() + "connect_timeout_s: 0.1\n")
    without_torch("model list=0", *(f"model {what}=16" for what in ("show tiny", "grant tiny --to bob", "remove tiny")))

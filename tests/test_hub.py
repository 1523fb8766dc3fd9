"""Names on the hub, against a server that speaks as much of its protocol as a download takes. 4 s."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner

from ditto.cli import app
from ditto.client import store
from ditto.client.hub import SETTINGS, WEIGHTS, on_hub
from ditto.errors import BadCheckpoint, PeerAbsent, StorageError, UnsupportedArchitecture, UsageError

pytest.importorskip("transformers")

import checkpoints

COMMIT, NAME = "0123456789abcdef" * 2 + "01234567", "somebody/tiny-bert"


@dataclass
class Hub:
    """Repositories by name, what was taken of them, and what goes wrong."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    status: int = 200

    def answer(self, path: str, head: bool) -> tuple[int, dict[str, str], bytes]:
        if self.status != 200:
            return self.status, {"X-Error-Code": "GatedRepo"} if self.status == 403 else {}, b"{}"
        parts = unquote(path).strip("/").split("/")
        api = parts[0] == "api"  # api/models/OWNER/NAME/KIND/REVISION, or OWNER/NAME/resolve/REVISION/FILE
        if api and parts[1] != "models":
            return 404, {}, b"{}"
        owner, name, kind, revision, *rest = parts[2:] if api else parts
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return 200, {}, json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode()
        if kind == "tree":
            tree = [{"type": "file", "path": p, "size": len(d), "oid": digest(d)} for p, d in files.items()]
            return 200, {}, json.dumps(tree).encode()
        data = files["/".join(rest)]
        if not head:
            self.taken.append("/".join(rest))
        return 200, {"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT}, data


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = made.answer(urlsplit(self.path).path, self.command == "HEAD")
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", made.url + template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return str(checkpoints.texts_file(tmp_path))


def put(hub: Hub, under: Path, case: str, **more: bytes) -> None:
    """A checkpoint of tests/checkpoints.py as a repository."""
    at = checkpoints.made(next(each for each in checkpoints.CASES if each.name == case), under / "made")
    files = {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
    hub.repositories[NAME] = files | {name.replace("__", "/"): data for name, data in more.items()}


def imported(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["model", "import", *args])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


def test_a_model_is_fetched_by_its_name(hub: Hub, texts: str, tmp_path: Path) -> None:
    """No more of it than is read, and the commit is said, which pins it."""
    other = {"onnx__model.onnx": b"x", "pytorch_model.bin": b"x", "model.fp16.safetensors": b"x", "README.md": b"x"}
    put(hub, tmp_path, "sentences-cls", **other)
    said = imported(NAME, "--calibrate", texts)
    assert f"commit {COMMIT} (--revision {COMMIT} takes it again)" in said.replace("\n", " ")
    model = store.load("tiny-bert")
    assert model.description.dimensions.pooling == "cls" and model.checkpoint.parts[-2:] == ("snapshots", COMMIT)
    assert sorted(hub.taken) == sorted(set(hub.repositories[NAME]) - {name.replace("__", "/") for name in other})
    hub.taken.clear()
    assert "takes it again" not in imported(NAME, "--calibrate", texts, "--revision", COMMIT)
    assert hub.taken == [], "the cache has it"


def test_the_hub_is_not_asked_for_what_is_here(hub: Hub, texts: str, tmp_path: Path) -> None:
    put(hub, tmp_path, "bert-base")
    here = checkpoints.made(checkpoints.CASES[2], tmp_path)
    here.parent.joinpath("somebody").mkdir()
    here.rename(tmp_path / NAME)
    imported(NAME, "--calibrate", texts)
    assert store.load("tiny-bert").description.architecture == "BertForSequenceClassification"
    assert not hub.taken and not on_hub(Path(NAME))
    assert "--revision is for a name on the hub" in imported(NAME, "--revision", "main", code=UsageError.exit_code)


@pytest.mark.parametrize("name", ["/a/b", "../a", "./a", "a", "a/b/c", "-a/b", "a/.b", "a/b ", "a b/c", "a/b\n", "~/b"])
def test_what_is_no_name_on_the_hub(name: str) -> None:
    assert not on_hub(Path(name)) and on_hub(Path("a/b-c_d.e"))


def test_weights_of_what_is_not_supported_are_not_fetched(hub: Hub, texts: str, tmp_path: Path) -> None:
    put(hub, tmp_path, "llama")
    assert "LlamaForCausalLM is not supported" in imported(
        NAME, "--calibrate", texts, code=UnsupportedArchitecture.exit_code
    )
    put(hub, tmp_path / "again", "bert-pretraining")
    shutil.rmtree(tmp_path / "cache")
    said = imported(NAME, "--calibrate", texts, code=UnsupportedArchitecture.exit_code)
    assert f"{NAME}-converted" in said and "snapshots" not in said
    assert "config.json" in hub.taken and not [name for name in hub.taken if name.endswith(".safetensors")]


def test_pickled_weights_are_not_fetched(hub: Hub, texts: str, tmp_path: Path) -> None:
    put(hub, tmp_path, "pickled")
    assert "save_pretrained(DIR)" in imported(NAME, "--calibrate", texts, code=BadCheckpoint.exit_code)
    assert "pytorch_model.bin" not in hub.taken


@pytest.mark.parametrize(
    ("status", "args", "code", "said"),
    [
        (404, [], BadCheckpoint.exit_code, "neither a directory here nor a model on the hub"),
        (403, [], BadCheckpoint.exit_code, "hf auth login"),
        (500, [], PeerAbsent.exit_code, "hf download somebody/tiny-bert --local-dir DIR"),
        (200, ["--revision", "other"], BadCheckpoint.exit_code, "no such commit, branch or tag"),
        (200, ["--revision", "../main"], UsageError.exit_code, "is no revision"),
    ],
)
def test_what_goes_wrong_there(
    status: int, args: list[str], code: int, said: str, hub: Hub, texts: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    put(hub, tmp_path, "bert-base")
    if status == 404:
        hub.repositories.clear()
    else:
        hub.status = status
    assert said in imported(NAME, "--calibrate", texts, *args, code=code).replace("\n  ", " ")
    assert store.find("tiny-bert") is None


def test_nobody_there(hub: Hub, texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "hf download" in imported(NAME, "--calibrate", texts, code=PeerAbsent.exit_code).replace("\n  ", " ")


def test_a_cache_that_cannot_be_written(hub: Hub, texts: str, tmp_path: Path) -> None:
    put(hub, tmp_path, "bert-base")
    (tmp_path / "cache").write_text("no directory")
    assert str(tmp_path / "cache") in imported(NAME, "--calibrate", texts, code=StorageError.exit_code)


def test_what_is_fetched_is_what_is_read() -> None:
    """No pattern takes a pickle, or everything."""
    import fnmatch

    for name in ("pytorch_model.bin", "model.fp16.safetensors", "onnx/model.onnx", "modeling.py", "x.pt", "README.md"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in [*SETTINGS, *WEIGHTS]), name

"""Files and directories replaced as a whole: what others see meanwhile, and what stays when it fails."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ditto import files
from ditto.cli import app
from ditto.client import store
from ditto.errors import StorageError
from ditto.models import random_model
from ditto.models.export import save_tensors, write_tensors


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 16 KiB: writing fails in the middle, as on a full disk. Not for longer than that: what
    the test run says may go to a file, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_bytes_and_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and mode(path) == 0o644
    files.write(path, "é\n", files.PRIVATE)
    assert path.read_bytes() == "é\n".encode() and mode(path) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_tensors_keep_the_mode_of_a_file(tmp_path: Path) -> None:
    """A checkpoint is for others to read; safetensors 0.8 would make it private."""
    write_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(3)})
    assert mode(tmp_path / "model.safetensors") == 0o644
    private = tmp_path / "private"
    private.touch(mode=0o600)
    save_tensors(private, {"w": torch.zeros(3)})
    assert mode(private) == 0o600


def test_a_private_file_is_private_before_it_has_content(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with files.replacing(path, files.PRIVATE) as fresh:
        assert mode(fresh) == 0o600 and fresh.stat().st_size == 0 and not path.exists()
        fresh.write_bytes(b"key")
    assert mode(path) == 0o600


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")
    with pytest.raises(KeyError), files.replacing(path) as fresh:
        fresh.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise KeyError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")
    with small_disk(), pytest.raises(StorageError, match=f"cannot write {path}: "):
        files.write(path, bytes(1 << 15))
    with small_disk(), pytest.raises(StorageError, match=f"cannot write {path}: "):
        write_tensors(path, {"w": torch.zeros(1 << 15)})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "open"])
def test_every_step_may_fail(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")

    def broken(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, broken)
        with pytest.raises(StorageError, match=f"cannot write {path}: Read-only"):
            files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "absent" / "x", tmp_path / "file" / "x", tmp_path / "directory"):
        with pytest.raises(StorageError, match=f"cannot write {path}: "):
            files.write(path, b"")
    with pytest.raises(StorageError, match="cannot write"):
        files.make_directory(tmp_path / "file" / "x")
    with pytest.raises(StorageError, match="cannot write"), files.replacing_directory(tmp_path / "file" / "x"):
        pass


def test_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, b"0" * 4096)
    seen: set[bytes] = set()

    def writer(letter: bytes) -> None:
        for _ in range(20):
            files.write(path, letter * 4096)

    threads = [threading.Thread(target=writer, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes())
    for thread in threads:
        thread.join()
    assert seen <= {letter * 4096 for letter in (b"0", b"a", b"b", b"c")}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_goes_a_day_later(tmp_path: Path) -> None:
    names = [".0123456789abcdef.new", ".fedcba9876543210.new", ".mine.new", "0123456789abcdef.new"]
    for name in names:
        (tmp_path / name).touch()
    left = tmp_path / ".00000000000000ff.new"
    left.mkdir()
    (left / "weights").touch()
    yesterday = time.time() - 90000
    for path in tmp_path.iterdir():
        if path.name != names[1]:
            os.utime(path, (yesterday, yesterday))
    files.write(tmp_path / "file", b"")
    assert {p.name for p in tmp_path.iterdir()} == {*names[1:], "file"}


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "models"
    for content in ("first", "second"):
        with files.replacing_directory(target) as fresh:
            assert mode(fresh) == 0o700
            (fresh / content).write_text(content)
            (fresh / "inner").mkdir()
            (fresh / "inner" / "file").touch()
        assert {p.name for p in target.iterdir()} == {content, "inner"} and mode(target) == 0o700
        assert [p.name for p in target.parent.iterdir()] == ["models"]
    with pytest.raises(KeyError), files.replacing_directory(target) as fresh:
        (fresh / "third").touch()
        raise KeyError
    assert (target / "second").exists()
    assert [p.name for p in target.parent.iterdir()] == ["models"]


def test_a_directory_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models"
    with files.replacing_directory(target) as fresh:
        (fresh / "first").touch()
    rename = Path.rename

    def broken(self: Path, other: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, other)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match="Input/output"),
        files.replacing_directory(target) as fresh,
    ):
        (fresh / "second").touch()
        patch.setattr(Path, "rename", broken)
    assert [p.name for p in target.iterdir()] == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_commands_say_what_they_cannot_write(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    environment = {"DITTO_HOME": str(blocked / "home")}
    for command in (["certs", "init"], ["cluster", "up"]):
        result = CliRunner().invoke(app, command, env=environment)
        assert result.exit_code == StorageError.exit_code, result.output
        assert "cannot write" in result.stderr and "Traceback" not in result.output


def test_a_model_that_does_not_fit_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    tiny = random_model("bert-tiny", 1, 8)[0].model_copy(update={"name": "tiny"})
    store.save(tiny, {"w": torch.zeros(3)}, tmp_path)
    with small_disk(), pytest.raises(StorageError, match=f"cannot write {tmp_path / 'models' / 'tiny'}: "):
        store.save(tiny, {"w": torch.zeros(1 << 15)}, tmp_path)
    assert store.load("tiny").weights()["w"].shape == (3,)
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["tiny"]
    assert mode(tmp_path / "models" / "tiny" / "weights.safetensors") == 0o600

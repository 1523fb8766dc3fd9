"""Every error's own code, where it is documented, and files that are not what they should be. 4 s."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ditto.cli import app
from ditto.cli.common import exit_codes_help
from ditto.cli.texts import read_file
from ditto.errors import EXIT_CODES, ConfigError, DittoError, StorageError, UnknownModel, UsageError
from ditto.names import PRESETS
from ditto.net.config import ClientConfig, DealerConfig, load_config

ROOT = Path(__file__).resolve().parent.parent


def test_codes_are_of_one_error_each() -> None:
    classes = [DittoError, *DittoError.__subclasses__()]
    assert len({cls.exit_code for cls in classes}) == len({cls.code for cls in classes}) == len(classes)
    assert not [cls for cls in classes[1:] for deeper in cls.__subclasses__() if deeper.code != cls.code]


def test_every_code_is_documented() -> None:
    """In the table of docs/operating.md, which says what to do, and in the help."""
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    table = text[text.index("## When something fails") :]
    assert {int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)} == set(EXIT_CODES) - {0}
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in exit_codes_help()


def test_the_help_of_preset_names_all() -> None:
    from ditto.presets import PRESETS as REAL

    assert tuple(REAL) == PRESETS
    said = CliRunner().invoke(app, ["model", "import", "--help"], env={"COLUMNS": "500"}).stdout
    assert ", ".join(PRESETS) in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("café".encode("latin-1"), "not in UTF-8 (byte 3)"),
        ("hi".encode("utf-16"), "not in UTF-8"),
        ("one\nhi".encode("utf-16-le"), "line 1: a NUL"),
        (b"fine\na\0b\n", "line 2: a NUL"),
    ],
)
def test_texts_in_another_encoding(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        read_file(path)
    assert "iconv" in str(refused.value) and str(path) in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffé\n".encode())
    assert read_file(path) == "é\n"
    with pytest.raises(UsageError, match="a directory"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("role:\tclient\n", "is not YAML"),
        ("role: client\ntls: {ca: a, cert: b, kee: c}\n", "tls.key is missing; no key tls.kee here: key?"),
        ("role: client\nthraeds: 2\n", "tls is missing; no key thraeds here: threads?"),
        ("role: client\ntls: {ca: a, cert: b, key: c}\nthreads: many\n", "threads: Input should be a valid integer"),
        ("".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9)), "and 5 more"),
        ("", "not a mapping"),
    ],
)
def test_configurations_that_are_wrong(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path, ClientConfig)
    assert said in str(refused.value) and len(str(refused.value)) < 1000


def test_keys_that_another_role_has(tmp_path: Path) -> None:
    path = tmp_path / "dealer.yaml"
    path.write_text("role: dealer\nmax_descripton_kb: 3\n")
    with pytest.raises(ConfigError, match=r"no key max_descripton_kb here: max_description_kb\?"):
        load_config(path, DealerConfig)


@pytest.mark.parametrize("args", [["--help"], ["model", "list", "--json"], ["cluster", "status"]])
def test_an_answer_that_cannot_be_written(args: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "ditto", *args], stdout=full, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"DITTO_HOME": str(tmp_path)}, cwd=ROOT, timeout=120,
        )  # fmt: skip
    assert ended.returncode == StorageError.exit_code, ended.stderr
    assert "standard output: No space left" in ended.stderr and "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr


@pytest.mark.parametrize("args", ["--help", "model list --json", "infer --model x --text a"])
def test_streams_that_are_closed(args: str, tmp_path: Path) -> None:
    """Of standard output that is closed, an error; of a pipe that nobody reads, the end, as usual tools have it; an
    error of the command's own is the command's in any case."""
    command = f'"{sys.executable}" -m ditto {args}'

    def run(streams: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"{command} {streams}"], capture_output=True, text=True,
            env=os.environ | {"DITTO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}, cwd=tmp_path, timeout=120,
        )  # fmt: skip

    own = UnknownModel.exit_code if args.startswith("infer") else None
    closed, unread, silent = run(">&-"), run("| true; exit ${PIPESTATUS[0]}"), run("<&- >&- 2>&-")
    assert closed.returncode == silent.returncode == (own or StorageError.exit_code), closed.stderr
    assert own or "standard output: Bad file descriptor" in closed.stderr
    assert unread.returncode == (own or 141), unread.stderr
    for ended in (closed, unread):
        assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr, ended.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """/proc takes no directory, whoever asks."""
    shipped = str(ROOT / "ditto" / "data" / "sentiment")
    for args in (["certs", "init"], ["cluster", "up"], ["model", "import", shipped]):
        ended = CliRunner().invoke(app, args, env={"DITTO_HOME": "/proc/ditto"})
        assert ended.exit_code == StorageError.exit_code, (args, ended.output)
        assert "cannot write /proc/ditto" in ended.stderr
    listed = CliRunner().invoke(app, ["model", "list", "--json"], env={"DITTO_HOME": "/proc/ditto"})
    assert listed.exit_code == 0 and json.loads(listed.stdout) == []

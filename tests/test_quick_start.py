"""The README's quick start, typed as it stands there, and its tables on a terminal of 80 columns. 15 s."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from ditto.client.local_cluster import Cluster, _free_ports

ROOT = Path(__file__).resolve().parent.parent


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("With a cluster that stays") :]
    return re.findall(r"^    (ditto .*)$", section[: section.index("```")], re.MULTILINE)


def test_the_quick_start_works_as_typed(tmp_path: Path) -> None:
    """In a shell, from the repository's root; only the ports are others. What it prints fits 80 columns."""
    program = tmp_path / "bin" / "ditto"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ditto "$@"\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    Cluster(home).configure(ports=_free_ports())
    environment = os.environ | {
        "DITTO_HOME": str(home), "COLUMNS": "80", "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("DITTO_CONFIG", None)
    lines = commands()
    assert [line.split()[1] for line in lines] == ["cluster", "model", "model", "infer", "model", "cluster"]
    lines[3:3] = ["ditto model list", "ditto cluster status"]  # tables of their own
    said = {}
    try:
        for line in lines:
            ended = subprocess.run(
                line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
            )
            assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
            said[line] = ended.stdout
    finally:
        Cluster(home).down()
    answer = next(text for line, text in said.items() if line.startswith("ditto infer"))
    assert "\n  positive" in answer and "\nthe same as plaintext: 1 of 1 label agrees" in answer
    assert "…" not in said["ditto model list"], "nothing of a name is lost"
    for line, text in said.items():
        wide = [row for row in text.splitlines() if len(row.rstrip()) > 80 and str(home) not in row]
        assert not wide, (line, wide)

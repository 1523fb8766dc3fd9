"""One target under one engine, in a process of its own: limited in memory, ended by its first finding, begun again.

The inputs of a finding go to the corpus, as the target's `check` takes them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

AGAIN = 5  # findings of a target after which it is left


@dataclass
class Report:
    target: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    covered: str = ""
    peak: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def findings(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0.0
        covered = f", {self.covered}" if self.covered else ""
        lines = [f"{self.target}: {self.engine}, {self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f}/s), "
                 f"peak {self.peak >> 20} MiB{covered}, {self.findings} findings"]  # fmt: skip
        return "\n  ".join([*lines, *self.found])


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def campaign(name: str, engine: str, inputs: int, seconds: float, corpus: Path) -> Report:
    report, number = Report(name, engine), 0
    while report.inputs < inputs and report.seconds < seconds and report.findings < AGAIN:
        number += 1
        _once(report, inputs - report.inputs, number, seconds - report.seconds, corpus)
    return report


def _once(report: Report, inputs: int, seed: int, seconds: float, corpus: Path) -> None:
    memory = Path("/dev/shm")  # an engine may end without removing what it made: this process does
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        said = Path(scratch) / "said.json"
        command = [
            sys.executable, "-m", f"fuzz.{report.engine}_engine", report.target, str(inputs), str(seed), str(said),
            str(corpus / report.target), str(seconds),
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"DITTO_FUZZ_SCRATCH": scratch},
        )  # fmt: skip
        report.seconds += time.monotonic() - began
        outcome = json.loads(said.read_text()) if said.exists() else {}
    report.inputs += outcome.get("inputs", 0)
    report.peak = max(report.peak, outcome.get("peak", 0))
    if features := re.findall(r"cov: (\d+) ft: (\d+)", done.stdout):
        report.covered = "{} edges, {} features".format(*features[-1])
    if done.returncode:
        last = [line for line in done.stdout.splitlines() if line.strip()][-30:]
        report.found.append(outcome.get("finding") or f"exit code {done.returncode}: " + " | ".join(last))


def keep(corpus: Path, given: bytes) -> Path:
    """A reproducer, by its content: the same one is kept once."""
    import hashlib

    corpus.mkdir(parents=True, exist_ok=True)
    path = corpus / hashlib.sha256(given).hexdigest()[:12]
    path.write_bytes(given)
    return path


def quiet() -> None:
    """No log lines, one thread: the engines print."""
    import logging

    import structlog
    import torch

    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

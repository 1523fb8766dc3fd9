"""`python -m fuzz`: looks for findings with atheris (coverage-guided) and with hypothesis, target by target."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzz import run
from fuzz.registry import TARGETS

CORPUS = Path(__file__).parent.parent / "corpus"


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs of each target, for each engine")
    parser.add_argument("--targets", default="", help="names, separated by commas; default: all")
    parser.add_argument("--engines", default="atheris,hypothesis", help="atheris, hypothesis, or both")
    parser.add_argument("--minutes", type=float, default=60.0, help="the most that one target may take of one engine")
    parser.add_argument("--list", action="store_true", help="only say which targets there are")
    options = parser.parse_args()
    names = [name for name in options.targets.split(",") if name] or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"{unknown[0]!r} is no target: {', '.join(TARGETS)}")
    if options.list:
        sys.stdout.write("\n".join(names) + "\n")
        return 0
    engines = [engine for engine in options.engines.split(",") if engine]
    if "atheris" in engines and not run.has_atheris():
        sys.stdout.write("atheris is not installed: it has wheels for some versions of Python only. hypothesis alone\n")
        engines.remove("atheris")
    findings = 0
    for name in names:
        for engine in engines:
            report = run.campaign(name, engine, options.inputs, 60 * options.minutes, CORPUS)
            findings += report.findings
            sys.stdout.write(f"{report}\n")
            sys.stdout.flush()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

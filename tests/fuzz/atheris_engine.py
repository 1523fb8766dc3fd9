"""Coverage-guided: atheris counts the branches of Ditto's own code."""

from __future__ import annotations

import sys
from typing import Any

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["ditto", "parties", "fuzz", "yaml"], enable_loader_override=False):
    from fuzz.engine import Engine, arguments


def main() -> None:
    engine = Engine(arguments())

    def one(data: Any) -> None:
        engine.one(bytes(data))

    flags = [
        f"-runs={engine.inputs}", f"-seed={engine.seed}", "-max_len=256", "-rss_limit_mb=4096", "-timeout=20",
        f"-max_total_time={max(1, int(engine.seconds))}", "-print_final_stats=1", f"-artifact_prefix={engine.scratch}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


main()

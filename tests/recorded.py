"""A server as `parties/` has it, which also writes down the keys that it derives and expands.

`python -m recorded CONFIG`: a line of JSON for each, in a file of its own process in $DITTO_RECORD. It holds digests,
no key. A line is out before the key is used, so that a killed process has told all that it did.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path

import yaml

from ditto.client.together import MODULES
from ditto.engine import job, sharing, weights
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig
from ditto.ops import guard
from ditto.ring.prg import Prg, derive
from ditto.service import dealer_service
from ditto.service.process import main

KINDS = {"step", "output", "guard", "weight", "party", "common"}  # any other context is a tensor's name


def record(role: str) -> None:
    path = Path(os.environ["DITTO_RECORD"]) / f"{role}-{os.getpid()}.jsonl"
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    begin = Prg.__init__

    def note(**what: object) -> None:
        os.write(out, json.dumps({"role": role} | what).encode() + b"\n")

    def digest(key: bytes) -> str:
        return hashlib.sha256(key).hexdigest()

    def derived(seed: bytes, *context: str | int) -> bytes:
        key = derive(seed, *context)
        kind = str(context[0]) if context[0] in KINDS else "share"
        note(event="derived", key=digest(key), kind=kind, context=[digest(seed), *map(str, context)])
        return key

    def expanded(self: Prg, key: bytes) -> None:
        note(event="expanded", key=digest(key))
        begin(self, key)

    Prg.__init__ = expanded  # type: ignore[method-assign]
    for module in (job, sharing, weights, guard, dealer_service):
        module.derive = derived  # type: ignore[attr-defined]


if __name__ == "__main__":
    kinds = {"dealer": DealerConfig, "coordinator": CoordinatorConfig}
    role = yaml.safe_load(Path(sys.argv[1]).read_text())["role"]
    start = importlib.import_module(MODULES[role]).start
    record(role)
    sys.exit(main(kinds.get(role, PartyConfig), start))  # type: ignore[type-var]

"""A server as it is started anywhere, under watch: what keys it expands, and by what clock.

    python benchmarks/traced_server.py -m parties.party CONFIGURATION

Two variables of the environment say where. `SOAK_KEYS`: a directory; one record for every key that is expanded, after
`RECORD`, written before its first use (a kill loses none). Only hashes: they tell keys apart and nothing else.
`SOAK_CLOCK`: a file of 8 bytes, the seconds by which the wall clock is off, read at every look at the clock. What
Python code reads is moved (time.time, datetime.now). gRPC is left alone: its Python half hands its C half times of the
kernel's clock, and the two would disagree as they never do; so are the kernel's file times.
"""

from __future__ import annotations

import datetime
import faulthandler
import hashlib
import importlib
import mmap
import os
import runpy
import signal
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECORD = struct.Struct("8s8s8s")  # kind, hash of the key, hash of what it was derived from


def move_clock(path: Path) -> None:
    for name in ("_channel", "_common", "_server", "_utilities", "_cython.cygrpc"):
        importlib.import_module(f"grpc.{name}")
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    seconds, real, stamp, kind = struct.Struct("<d"), time.time, time.time_ns, datetime.datetime

    def off() -> float:
        found: float = seconds.unpack_from(shared)[0]
        return found

    class Moved(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return kind.now(tz) + datetime.timedelta(seconds=off())

    kept = SimpleNamespace(**vars(time))
    for name, module in list(sys.modules.items()):
        if name.startswith("grpc.") and getattr(module, "time", None) is time:
            module.time = kept  # type: ignore[attr-defined]
    time.time = lambda: real() + off()
    time.time_ns = lambda: stamp() + int(off() * 1e9)
    datetime.datetime = Moved  # type: ignore[misc]


class Key(bytes):
    """A derived key that knows what it is for."""

    record: bytes


def record_keys(directory: Path, role: str) -> None:
    from ditto.engine import job, sharing, weights
    from ditto.ops import guard
    from ditto.ring.prg import Prg, derive

    file = os.open(directory / f"{role}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    begin = Prg.__init__

    def short(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=8).digest()

    def deriving(seed: bytes, *context: str | int) -> bytes:
        key = Key(derive(seed, *context))
        key.record = RECORD.pack(str(context[0]).encode()[:8], short(key), short(repr((bytes(seed), context)).encode()))
        return key

    def expanding(self: Prg, key: bytes) -> None:
        if isinstance(key, Key):
            os.write(file, key.record)
        begin(self, key)

    Prg.__init__ = expanding  # type: ignore[method-assign]
    for module in (job, sharing, weights, guard):
        module.derive = deriving  # type: ignore[attr-defined]


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[1])
    faulthandler.register(signal.SIGUSR1)  # where is it?
    _, module, configuration = sys.argv[-3:]
    if clock := os.environ.get("SOAK_CLOCK"):
        move_clock(Path(clock))
    if keys := os.environ.get("SOAK_KEYS"):
        record_keys(Path(keys), Path(configuration).stem)
    sys.argv = [module, configuration]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

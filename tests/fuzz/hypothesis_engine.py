"""By hypothesis: any bytes, cut into many inputs.

An example of hypothesis's costs a thousand times its bytes: with one for each input most of the time would be its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.engine import Engine, arguments

SIZE = 4096  # bytes of an example
LONGEST = 128  # bytes of an input, at most


class Late(Exception):
    """No time is left."""


def cut(data: bytes) -> Iterator[bytes]:
    """Inputs of 1 to LONGEST bytes, each as long as its first byte says."""
    while data:
        size = 1 + data[0] % LONGEST
        yield data[1 : 1 + size]
        data = data[1 + size :]


def main() -> None:
    engine = Engine(arguments())
    end = time.monotonic() + engine.seconds

    @seed(engine.seed)
    @settings(
        max_examples=engine.inputs, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(min_size=SIZE, max_size=SIZE))
    def inputs(data: bytes) -> None:
        for each in cut(data):
            if time.monotonic() > end or engine.done >= engine.inputs:
                raise Late
            engine.one(each)

    with contextlib.suppress(Late):
        inputs()
    engine.say()


main()

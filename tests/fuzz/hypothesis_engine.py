"""By hypothesis: any bytes, shrunk where they are a finding."""

from __future__ import annotations

import contextlib
import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.engine import Engine, arguments


class Late(Exception):
    """No time is left."""


def main() -> None:
    engine = Engine(arguments())
    end = time.monotonic() + engine.seconds

    @seed(engine.seed)
    @settings(
        max_examples=engine.inputs, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(max_size=128))
    def inputs(data: bytes) -> None:
        if time.monotonic() > end:
            raise Late
        engine.one(data)

    with contextlib.suppress(Late):
        inputs()
    engine.say()


main()

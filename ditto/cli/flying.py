"""How commands say that several jobs are in flight (`ditto.client.flight`)."""

from typing import Annotated

import typer

from ditto.cli.common import note
from ditto.client.flight import IN_FLIGHT, MOST, Refused

InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight", min=1, max=MOST, help="Jobs asked at once: while one waits on the network, another computes."
    ),
]
__all__ = ["IN_FLIGHT", "InFlight", "one_at_a_time"]


def one_at_a_time(quiet: bool) -> Refused:
    """Says why jobs go on one at a time."""

    def say(error: BaseException) -> None:
        if not quiet:
            note(f"{error}; going on with one job at a time")

    return say

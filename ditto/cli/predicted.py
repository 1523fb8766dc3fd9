"""What a file's jobs will take, before the first one begins."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.cli.jobs import Job
from ditto.cli.report import duration
from ditto.client.home import home
from ditto.errors import ConfigError
from ditto.net.emulation import Network
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.models import Description


@dataclass(frozen=True)
class Prediction:
    """Of all jobs: bytes that the parties send each other and take from the dealer; the most that a server holds beside
    the weights; `seconds`, where this machine was measured and the servers are on it. Not predicted: other load, the
    client's own work, the queue."""

    sent: int
    dealt: int
    held: int
    seconds: float | None

    def line(self) -> str:
        shown = "the first jobs will tell how long (before them: ditto plan --model NAME --measure, once)"
        if self.seconds is not None:
            shown = f"about {duration(self.seconds)} by this machine's profile, one job at a time, other load aside"
        return (
            f"predicted: {size(self.held)} held by a server beside the weights, {size(self.sent)} between the parties, "
            f"{size(self.dealt)} from the dealer; {shown}"
        )


def predict(description: "Description", jobs: Sequence[Job], guard: bool, network: Network | None) -> Prediction:
    """From the cost model alone. `network` is the one that the servers stand on, if known. A profile that cannot be
    read, such as another version's, is as none: `ditto plan` says what is wrong with it, and asking goes on."""
    from ditto.cli.plan import MACHINE
    from ditto.engine.memory import peak_of
    from ditto.models import Plan
    from ditto.models.compiled import program_for
    from ditto.planning import forecast, machine

    path: Path = home() / MACHINE
    measured: machine.Machine | None = None
    if path.exists() and network is not None:
        with contextlib.suppress(ConfigError):
            measured = machine.read(path)
    sent = dealt = held = 0
    seconds = 0.0
    for (count, length), times in Counter(job.shape for job in jobs).items():
        program = program_for(description.text(), Plan(count, length, guard=guard))
        layers = [forecast.whole(parts) for parts in forecast.demands(program, measured or machine.COUNTING)]
        sent += times * 2 * sum(layer.sent for layer in layers)
        dealt += times * sum(layer.dealt for layer in layers)
        held = max(held, *peak_of(program))
        if measured is not None and network is not None:
            total = forecast.total(forecast.forecast(layers, measured, network))
            seconds += times * (total.online + total.offline)
    return Prediction(sent, dealt, held, seconds if measured is not None else None)

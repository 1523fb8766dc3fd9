"""`ditto plan`: what a request will take, and what each choice of the preset costs beside the one not taken."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, note, one_line, out
from ditto.cli.texts import read_file
from ditto.cli.waiting import texts_done, waiting
from ditto.client import store
from ditto.client.home import home
from ditto.errors import UsageError
from ditto.net.emulation import Network
from ditto.net.emulation import network as profile
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.models import Description
    from ditto.planning.forecast import Demand, Forecast
    from ditto.planning.machine import Machine
    from ditto.planning.planner import Budget, Planned, Row

MACHINE = "machine.json"  # in $DITTO_HOME
WORDS = {  # for a choice, in the table
    "exponential": "{} exponentials",
    "used": "{}",
    "deviation": "{}",
    "activation": "{}",
    "gelu": "{} type",
    "product": "result {}",
}
NAMED = {
    "used": {"bits": "buckets by bits", "table": "buckets by table"},
    "deviation": {**{size: f"{size} tables" for size in ("large", "medium", "small")}, "tree": "tree of keys"},
}
OBJECTIVES = ("latency", "bytes", "offline")
For = Annotated[str, typer.Option("--for", help="What is to be least: latency (both phases), bytes or offline.")]
Tolerance = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Error of a part's result that is tolerated, relative; default: 0.005."),
]
MachineFile = Annotated[
    Path | None, typer.Option("--machine", help="The machine's profile; default: measured once, then kept.")
]


def machine_at(path: Path | None, measure: bool, quiet: bool) -> "Machine":
    """The profile of a file, else this machine's: measured if asked for or not yet there."""
    from ditto.planning import machine

    target = path or home() / MACHINE
    if measure or (path is None and not target.exists()):
        from ditto.planning.measure import measure as measured

        if not quiet:
            note("measuring this machine, once; keep it quiet meanwhile")
        with waiting(quiet) as say:
            machine.write(target, measured(say))
    return machine.read(target)


def description_at(model: str, calibrate: Path | None, quiet: bool) -> "Description":
    """Of an imported model's name, a description's file, or a checkpoint's directory, calibrated here."""
    path = Path(model)
    if path.is_dir():
        return _calibrated(path, calibrate, quiet)
    if path.suffix == ".json" or path.is_file():
        from ditto.models import parse

        return parse(read_file(path))
    return store.load(model).description


def _calibrated(path: Path, calibrate: Path | None, quiet: bool) -> "Description":
    from ditto.cli.demo import calibration_texts
    from ditto.models import load_checkpoint
    from ditto.models.calibration import calibrate as calibrated_on
    from ditto.models.calibration import describe_calibrated

    checkpoint = load_checkpoint(path)
    lines = read_file(calibrate).splitlines() if calibrate else calibration_texts()
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{calibrate}: no sentence in this file")
    with waiting(quiet) as say:
        calibration = calibrated_on(checkpoint, texts, progress=texts_done(say))
    return describe_calibrated(checkpoint, "planned", calibration)[0]


def planned(
    description: "Description", network: Network, objective: str, tolerance: float | None, machine: "Machine",
    seq: int, batch: int, tokens: int, say: Callable[[str], None], budget: "Budget | None" = None,
) -> "Planned":  # fmt: skip
    """Without a tolerance, what a budget is spent on errs as it may."""
    from ditto.models import Plan
    from ditto.models.registry import generates
    from ditto.planning.planner import TOLERANCE, Objective, plan

    if tokens > 1 and not generates(description.architecture):
        raise UsageError(f"{description.architecture} generates no text: --tokens is for GPT-2")
    length = min(seq, description.dimensions.positions)
    job = Plan(batch, length, tokens)
    if tolerance is None:
        tolerance = TOLERANCE if budget is None else 1.0
    return plan(description, job, machine, network, Objective(objective), tolerance, say=say, budget=budget)


def check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise UsageError(f"--for {objective}: one of {', '.join(OBJECTIVES)}")


def plan(
    model: Annotated[
        str, typer.Option("--model", help="An imported model, a description's file, or a checkpoint's directory.")
    ],
    network: Annotated[str, typer.Option(help="A network profile's name or a YAML file.")] = "loopback",
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Texts in the job.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Of a GPT-2: tokens to generate.")] = 1,
    objective: For = "latency",
    tolerance: Tolerance = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Texts for a checkpoint's ranges; default: the demo's sentences.")
    ] = None,
    machine: MachineFile = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine now.")] = False,
    json: Json = False,
) -> None:
    """Predict a job's seconds and bytes, and choose what the preset leaves open. Asks no server."""
    check_objective(objective)
    emulated = profile(network)
    say: Callable[[str], None] = (lambda text: None) if json else note
    description = description_at(model, calibrate, json)
    found = machine_at(machine, measure, json)
    result = planned(description, emulated, objective, tolerance, found, seq, batch, tokens, say)
    summary = document(result, description, emulated, objective)
    if json:
        emit(summary)
    else:
        _show(result, summary)


def document(result: "Planned", description: "Description", network: Network, objective: str) -> dict[str, Any]:
    return {
        "model": description.name,
        "preset": description.preset,
        "network": network.name,
        "for": objective,
        "rows": [_row(row) for row in result.rows],
        "choices": [choices.model_dump(exclude_none=True) for choices in result.choices],
        "own": _ends(result.own, result.own_seconds, result.whole_seconds[0]),
        "planned": _ends(result.taken, result.seconds, result.whole_seconds[1]),
        "imported": [choices.model_dump(exclude_none=True) for choices in description.choices],
    }


def _row(row: "Row") -> dict[str, Any]:
    return {
        "layer": row.layer,
        "part": row.part,
        "options": [
            {
                "choice": option.choices.model_dump(exclude_none=True),
                "own": option.own,
                "taken": index == row.taken,
                "rounds": option.demand.rounds,
                "bytes_sent": option.demand.sent,
                "bytes_from_dealer": option.demand.dealt,
                "seconds": row.seconds[index],
                "error": option.error,
            }
            for index, option in enumerate(row.options)
        ],
    }


def _ends(layers: "list[Demand]", seconds: "Forecast", whole: float) -> dict[str, Any]:
    return {
        "rounds": sum(d.rounds for d in layers),
        "bytes_sent": sum(d.sent for d in layers),
        "bytes_from_dealer": sum(d.dealt for d in layers),
        "online_seconds": seconds.online,
        "offline_seconds": seconds.offline,
        "seconds": whole,
    }


def _show(result: "Planned", summary: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("choice")  # the one that gives way on a narrow terminal
    for heading in ("rounds", "sent", "dealt", "seconds", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary["rows"]:
        for option in row["options"]:
            table.add_row(
                f"{row['layer']} {row['part']}", _named(option), str(option["rounds"]), size(option["bytes_sent"]),
                size(option["bytes_from_dealer"]), f"{option['seconds']:.3f}", f"{option['error']:.5f}",
                style="bold" if option["taken"] else "",
            )  # fmt: skip
    if summary["rows"]:
        out.print(table)
        out.print(
            "bold: taken; sent: by each party; dealt: to both; seconds: what the job takes more for this part; error: "
            "relative, of the part's result\n"
        )
    ends = Table(box=None, pad_edge=False, header_style="bold")
    ends.add_column(f"on {one_line(summary['network'])}")
    for heading in ("rounds", "sent by each", "from dealer", "online s", "offline s", "in all s"):
        ends.add_column(heading, justify="right")
    for name, key in (("the preset's", "own"), ("as planned", "planned")):
        end = summary[key]
        ends.add_row(
            name, str(end["rounds"]), size(end["bytes_sent"]), size(end["bytes_from_dealer"]),
            f"{end['online_seconds']:.2f}", f"{end['offline_seconds']:.2f}", f"{end['seconds']:.2f}",
        )  # fmt: skip
    out.print(ends)


def _named(option: dict[str, Any]) -> str:
    if option["own"]:
        return "the preset's"
    return ", ".join(WORDS[k].format(NAMED.get(k, {}).get(v, v)) for k, v in option["choice"].items())

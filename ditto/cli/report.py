"""What an inference cost: the fields of `--json`, sums over several jobs, tables for people, files for `--report` and
`--trace`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from ditto import files
from ditto.cli.common import one_line, out
from ditto.errors import UsageError
from ditto.net.emulation import Network
from ditto.report.pieces import size
from ditto.report.target import target

_KEYS = ("name", "layer", "operation", "phase")
_FIRST = ("rounds_timeline",)  # every job's moments count from a zero of its own, so the first job's stand for all


def merge(a: Any, b: Any) -> Any:
    """The sum of two reports of one shape: numbers add up, rows of the same name fall together. What only one of them
    has stays as it is; of texts and of timelines, the first one does; a yes is one of both."""
    if isinstance(a, dict):
        both = (a.keys() & b.keys()) - {*_KEYS, *_FIRST}
        return {k: merge(a[k], b[k]) if k in both else (b | a)[k] for k in a | b}
    if isinstance(a, list) and any(isinstance(row, dict) for row in a + b):
        rows = {_key(row): row for row in a}
        for row in b:
            rows[_key(row)] = merge(rows[_key(row)], row) if _key(row) in rows else row
        return list(rows.values())
    if isinstance(a, list):
        return [merge(x, y) for x, y in zip(a, b, strict=True)]
    if isinstance(a, bool):
        return a and b
    return a + b if isinstance(a, int | float) else a


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in _KEYS)


def max_abs_error(results: Any, reference: Any) -> float:
    """The largest difference between numbers at the same places of two nested lists of one shape."""
    if isinstance(results, list):
        return max((max_abs_error(x, y) for x, y in zip(results, reference, strict=True)), default=0.0)
    return abs(float(results) - float(reference))


def duration(seconds: float) -> str:
    """For people: to two digits or so."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def largest(spent: dict[str, Any], most: int = 3) -> str:
    """The whole of a command's seconds (`ditto.wall`), and where the most of them went."""
    parts = sorted(spent["parts"].items(), key=lambda part: -part[1])[:most]
    named = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts if seconds >= 0.05)
    return f"{spent['seconds']:.1f} s in all" + (f": {named}" if named else "")


def print_costs(report: dict[str, Any], by_layer: bool = True) -> None:
    """One row a layer: seconds, rounds and bytes, offline and online."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for heading in ("offline s", "from dealer", "online s", "rounds", "sent by P0", "sent by P1"):
        table.add_column(heading, justify="right")
    for row in report["layers"] if by_layer else []:
        table.add_row(one_line(row["name"]), *_cells(row))
    table.add_row("all", *_cells(report), style="bold")
    out.print(table)
    if (flying := report.get("in_flight", 1)) > 1:
        out.print(
            f"{report['wall_seconds']:.2f} s with {flying} jobs in flight: seconds above are each job's, and overlap"
        )
    if stocked := report.get("stocked_jobs"):
        out.print(f"{stocked} of {report['jobs']} jobs took correlations that were dealt before")


def _cells(row: dict[str, Any]) -> list[str]:
    offline, online = row["offline"], row["online"]
    return [
        f"{offline['seconds']:.2f}",
        size(sum(offline["bytes_to_party"])),
        f"{online['seconds']:.2f}",
        str(online["rounds"]),
        *(size(n) for n in online["bytes_sent"]),
    ]


@dataclass(frozen=True)
class CostFiles:
    """Where the page and the trace of a request go."""

    page: Path | None
    trace: Path | None

    @classmethod
    def checked(cls, report: Path | None, trace: Path | None) -> Self:
        """Before any work is done. Raises UsageError."""
        chosen = cls(target(report, "--report"), target(trace, "--trace"))
        if chosen.page and chosen.page == chosen.trace:
            raise UsageError(f"--report and --trace name one file, {chosen.page}")
        return chosen

    def write(self, costs: dict[str, Any], network: Network | None) -> None:
        """After the answer is out: a full disk does not cost it. `network` is the one that the servers stand on."""
        if self.page:
            from ditto.report import page

            files.write(self.page, page.render(costs, network))
        if self.trace:
            from ditto.report import trace

            files.write(self.trace, trace.render(costs))

"""What `ditto evaluate` prints: progress with the metric so far, and tables."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ditto.cli.common import err, note, one_line, out

if TYPE_CHECKING:
    from ditto.evaluation.records import Record
    from ditto.evaluation.subject import Subject

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Watcher:
    """The metric of the last mode and the time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(
        self, subject: "Subject", modes: Sequence[str], known: "list[Record]", total: int, quiet: bool
    ) -> None:
        self._subject, self._mode, self._quiet = subject, modes[-1], quiet
        self._records, self._before, self._total = list(known), len(known), total
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )  # fmt: skip
        self._bar = Progress(*columns, console=err, transient=True) if err.is_terminal and not quiet else None
        self._began = self._line = time.monotonic()

    def __enter__(self) -> "Watcher":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._mode, total=self._total, completed=self._before)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def start(self) -> None:
        """Servers are up: what came before is no part of an example's time."""
        self._began = time.monotonic()
        if self._bar:
            self._bar.reset(self._task, completed=self._before)

    def add(self, records: "Sequence[Record]") -> None:
        self._records += records
        if self._bar:
            self._bar.update(self._task, completed=len(self._records), description=self._so_far())
        elif not self._quiet and time.monotonic() - self._line > LINE_EVERY and len(self._records) < self._total:
            self._line = time.monotonic()
            done = len(self._records)
            left = (self._line - self._began) / (done - self._before) * (self._total - done)
            shown = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
            note(f"{done:,} of {self._total:,} examples, {self._so_far()}; {shown} left")

    def _so_far(self) -> str:
        import torch

        from ditto.evaluation.run import measured

        name = self._subject.metrics[0]
        outputs = torch.tensor([record.outputs[self._mode] for record in self._records], dtype=torch.float64)
        labels = torch.tensor([record.label for record in self._records], dtype=torch.float64)
        return f"{self._mode} {name} {measured(name, outputs, labels):.4f}"


def show(document: dict[str, Any]) -> None:
    """What was measured, on what; answers; costs."""
    rows = document["results"]
    n, split = rows[0]["n"], f" {document['split']}" if document["split"] else ""
    of = f"{n:,} of {document['examples']:,} examples" if n < document["examples"] else f"all {n:,} examples"
    drawn = f", drawn with seed {document['seed']}" if n < document["examples"] else ""
    model = f"{one_line(document['model'])}, preset {document['preset']}" if document["model"] else "a checkpoint"
    out.print(f"{one_line(document['task'])}{split}: {of}{drawn}; {model}")
    out.print(_answers(rows))
    for row in rows:
        if row["compared_with"]:
            out.print(_difference(row))
    out.print()
    out.print(_costs(rows))
    if (flying := document["in_flight"] or 1) > 1:
        out.print(f"mpc with {flying} jobs in flight: s is of the whole run, online and offline s of jobs that overlap")
    guarded = [row["out_of_range"] for row in rows if row["out_of_range"]]
    if guarded:
        out.print(f"{guarded[0]:.1%} of the examples were in jobs in which a value left its calibrated range")


def _answers(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("mode")
    names, floats = list(rows[0]["metrics"]), any(row["less_fp32"] for row in rows)
    for heading in (names[0], "95 %", *names[1:], *(("less fp32", "95 %") if floats else ())):
        table.add_column(heading, justify="right")
    for row in rows:
        others = (f"{row['metrics'][name]['value']:.4f}" for name in names[1:])
        table.add_row(row["mode"], *_between(row), *others, *(_between(row["less_fp32"], "+") if floats else ()))
    return table


def _between(found: dict[str, Any] | None, sign: str = "") -> tuple[str, str]:
    if found is None:
        return "", ""
    digits = 4 if abs(found["value"]) < 10 else 2  # perplexity
    value, low, high = (format(x, f"{sign}.{digits}f") for x in (found["value"], *found["interval"]))
    return value, f"{low} to {high}"


def _difference(row: dict[str, Any]) -> str:
    answers = "" if row["differing"] is None else f"{row['differing']:.2%} of the answers differ, "
    return f"{row['mode']} beside {row['compared_with']}: {answers}outputs by {row['largest_difference']:.4f} at most"


def _costs(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("each")
    columns = {
        "seconds": ("s", "{:.3f}"),
        "online_seconds": ("online s", "{:.3f}"),
        "offline_seconds": ("offline s", "{:.3f}"),
        "mb_party": ("MB a party", "{:.2f}"),
        "mb_dealer": ("MB dealer", "{:.2f}"),
        "rounds": ("rounds a job", "{:.1f}"),
    }
    used = {name: shown for name, shown in columns.items() if any(row[name] is not None for row in rows)}
    for heading, _ in used.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["mode"], *(_or_none(row[name], how) for name, (_, how) in used.items()))
    return table


def _or_none(value: float | None, how: str) -> str:
    return "" if value is None else how.format(value)

"""What a command waits for, once that takes two seconds: live on a terminal, lines elsewhere, nothing with --json."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ditto.cli.common import err, note, one_line

SOON = 2.0  # seconds before the first line, and between two


class Waiting:
    """Told what is waited for, and how much of it is done, as often as that is known."""

    def __init__(self, bar: Progress | None, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._task = bar.add_task("", total=None) if bar else None
        self._last, self._next = "", time.monotonic() + SOON

    def __call__(self, text: str, done: float = 0, total: float | None = None) -> None:
        """`done` of `total`, in any unit; None where nobody knows how much there is."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=one_line(text), completed=done, total=total)
        elif not self._quiet and text != self._last and time.monotonic() >= self._next:
            note(text)
            self._last, self._next = text, time.monotonic() + SOON


@contextmanager
def waiting(quiet: bool) -> Iterator[Waiting]:
    if quiet or not err.is_terminal:
        yield Waiting(None, quiet)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield Waiting(bar, quiet)

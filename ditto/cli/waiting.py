"""What a command waits for, once that takes two seconds: live on a terminal, lines elsewhere, nothing with --json."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ditto.cli.common import err, note, one_line

if TYPE_CHECKING:
    from ditto.client.local_cluster import Cluster
    from ditto.net.emulation import Network

SOON, SELDOM = 2.0, 32.0  # seconds before the first line; between two, twice as long as before, and that at most


class Waiting:
    """Told what is waited for, and how much of it is done, as often as that is known."""

    def __init__(self, bar: Progress | None, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._task = bar.add_task("", total=None) if bar else None
        self._last, self._next, self._pause = "", time.monotonic() + SOON, SOON

    def __call__(self, text: str, done: float = 0, total: float | None = None) -> None:
        """`done` of `total`, in any unit; None where nobody knows how much there is."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=one_line(text), completed=done, total=total)
        elif not self._quiet and text != self._last and time.monotonic() >= self._next:
            note(text)
            self._last, self._next = text, time.monotonic() + self._pause
            self._pause = min(2 * self._pause, SELDOM)


@contextmanager
def waiting(quiet: bool) -> Iterator[Waiting]:
    if quiet or not err.is_terminal:
        yield Waiting(None, quiet)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield Waiting(bar, quiet)


def texts_done(say: Waiting) -> Callable[[int, int], None]:
    """For a calibration."""
    return lambda done, of: say(f"calibrating: {done:,} of {of:,} texts", done, of)


def awaited(say: Waiting) -> Callable[[list[str]], None]:
    """For what starts servers: says which of them do not answer yet."""
    from ditto.names import SERVERS

    most = len(SERVERS)

    def waiting(late: list[str]) -> None:
        nonlocal most
        most = max(most, len(late))  # parties may have several workers
        say(f"waiting for {', '.join(late)}", most - len(late), most)

    return waiting


@contextmanager
def servers(threads: int, quiet: bool, network: "Network | None" = None) -> "Iterator[Cluster]":
    """Of one's own, as `embedded` has them, and what is awaited until they are there."""
    from ditto.client.local_cluster import embedded

    with ExitStack() as stack:
        with waiting(quiet) as say:
            cluster = stack.enter_context(embedded(threads, network=network, waiting=awaited(say)))
        yield cluster

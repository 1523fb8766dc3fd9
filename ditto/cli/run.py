"""Jobs from the client's side: encode, run, decode, with progress on the way."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ditto.cli.common import err, note, one_line
from ditto.cli.report import duration, max_abs_error, merge
from ditto.client.verdict import kind_of, verdict
from ditto.net.config import DEFAULT_PORTS, ClientConfig
from ditto.net.emulation import Network
from ditto.net.emulation import network as profile

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.client.client import Client
    from ditto.engine.program import Program
    from ditto.models import Description
    from ditto.models.tokenizer import Batch, Text, Tokenizer

BATCH = 8  # sentences in one job
LINE_EVERY = 30.0  # seconds between lines on many jobs, where there is no terminal


class Watcher:
    """Progress by layer: a bar on a terminal, lines elsewhere, nothing when quiet."""

    def __init__(self, bar: Progress | None, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._task: TaskID | None = None
        self._label = ""

    def job(self, label: str) -> None:
        self._label = label
        if self._bar and self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"{label}: inputs", total=None) if self._bar else None

    def begin(self, at: int, label: str) -> "Watcher":
        """The same, as `Counting` has it, of a job that is the only one."""
        self.job(label)
        return self

    def done(self, at: int) -> None:
        """Nothing more to be said."""

    def end(self) -> None:
        """The job goes on without progress."""
        if self._bar and self._task is not None:
            self._bar.stop()
        self._quiet = True

    def program(self, program: "Program") -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=2 * len(program.layers))

    def event(self, event: dict[str, Any]) -> None:
        if self._quiet or "phase" not in event:
            return
        label = one_line(f"{self._label}: {event['name']}")
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=1, description=f"{label} {event['phase']}")
        elif event["phase"] == "online":
            note(f"{label} {event['seconds']:.2f} s")


@contextmanager
def watching(quiet: bool) -> Iterator[Watcher]:
    if quiet or not err.is_terminal:
        yield Watcher(None, quiet)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield Watcher(bar, quiet)


class Counting:
    """Progress of many jobs, in texts and the time left: a bar on a terminal, a line now and then elsewhere.

    Several may be under way at once, each followed by what `begin` gives, in any thread. What is left is told by the
    padded tokens of all texts, which the time of a job follows roughly, and the time that what is done took.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], bar: Progress | None, quiet: bool) -> None:
        self._shapes, self._bar, self._quiet = list(shapes), bar, quiet
        self._total, self._texts = sum(map(math.prod, shapes)), sum(count for count, _ in shapes)
        self._answered, self._label = 0, ""
        self._lock = threading.Lock()
        self._parts: dict[int, float] = {}  # what is done of each job, of its tokens
        self._began = self._line = time.monotonic()
        self._task = bar.add_task("", total=self._total) if bar else None

    def begin(self, at: int, label: str) -> "Counted":
        """Job `at`, perhaps once more."""
        with self._lock:
            self._label, self._parts[at] = label, 0.0
            self._say()
        return Counted(self, at)

    def done(self, at: int) -> None:
        """Its answers are there."""
        with self._lock:
            self._parts[at] = math.prod(self._shapes[at])
            self._answered += self._shapes[at][0]
            self._say()

    def advance(self, at: int, part: float) -> None:
        """By this part of the job."""
        with self._lock:
            whole = math.prod(self._shapes[at])
            self._parts[at] = min(self._parts[at] + part * whole, whole)
            if self._bar and self._task is not None:
                self._bar.update(self._task, completed=sum(self._parts.values()))

    def _say(self) -> None:
        """The caller holds the lock."""
        done, now = sum(self._parts.values()), time.monotonic()
        said = f"{one_line(self._label)}: {self._answered:,} of {self._texts:,} texts"
        if done:
            said += f", about {duration((now - self._began) / done * (self._total - done))} left"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, description=said)
        elif not self._quiet and now - self._line > LINE_EVERY:
            self._line = now
            note(said)


@dataclass
class Counted:
    """One of those jobs."""

    counting: Counting
    at: int
    steps: int = 0

    def program(self, program: "Program") -> None:
        self.steps = 2 * len(program.layers)

    def event(self, event: dict[str, Any]) -> None:
        if "phase" in event and self.steps:
            self.counting.advance(self.at, 1 / self.steps)


@contextmanager
def counting(shapes: Sequence[tuple[int, int]], quiet: bool) -> Iterator[Counting]:
    """For jobs of these numbers of texts and tokens."""
    if quiet or not err.is_terminal:
        yield Counting(shapes, None, quiet)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield Counting(shapes, bar, quiet)


@dataclass
class Run:
    """Results of some jobs, one a text, and what they cost together."""

    results: list[Any] = field(default_factory=list)
    reference: list[Any] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    wall_seconds: float = 0  # in which any of them was under way
    in_flight: int = 1  # so many at once
    in_range: list[bool | None] = field(default_factory=list)  # by text; those of one job are marked together
    marks: list[str] = field(default_factory=list)  # layers in which values left their range

    def add(self, results: list[Any], report: dict[str, Any], seq: int, wall: float) -> None:
        report = dict(report)
        checked, marks = report.pop("in_range"), report.pop("out_of_range_layers")
        self.in_range += [checked] * len(results)
        self.marks = list(dict.fromkeys(self.marks + marks))
        self.results += results
        self.report = merge(self.report, report) if self.report else report
        self.seq = max(self.seq, seq)
        self.wall_seconds += wall


def run_batch(
    client: "Client",
    description: "Description",
    batch: "Batch",
    watcher: Watcher,
    run: Run,
    tensors: "dict[str, Tensor] | None" = None,
    guard: bool = False,
) -> None:
    """One job; its results and costs are added to `run`. Public embeddings are looked up in `tensors`."""
    from ditto.api.jobs import ask

    began = time.perf_counter()
    results, report = ask(client, description, batch, tensors, guard, watcher.event, watcher.program)
    run.add(results, report, batch.shape[1], time.perf_counter() - began)


def encode_all(tokenizer: "Tokenizer", texts: "Sequence[Text]", max_length: int) -> "list[Batch]":
    """All texts and pairs in jobs of at most 8; one that does not fit is found before the first job starts."""
    return [tokenizer.encode(texts[i : i + BATCH], max_length) for i in range(0, len(texts), BATCH)]


def document(run: Run, description: "Description", network: str, *, checked: bool) -> dict[str, Any]:
    """The fields that `infer --json`, `bench model --json` and `demo --json` share."""
    result: dict[str, Any] = {
        "model": description.name,
        "owner": run.report["owner"],
        "architecture": description.architecture,
        "preset": description.preset,
        "embeddings": description.embeddings,
        "network": network,
        "texts": len(run.results),
        "seq": run.seq,
        "output": run.results,
    }
    if checked:
        result["plaintext_output"] = run.reference
        result["max_abs_error"] = max_abs_error(run.results, run.reference)
        result |= verdict(kind_of(description), run.results, run.reference).document()
    return (
        result
        | {key: run.report[key] for key in ("jobs", "online", "offline", "layers", "operations", "traffic")}
        | {key: run.report[key] for key in ("stock", "stocked_jobs")}
        | {
            "seconds": run.report["seconds"],
            "wall_seconds": run.wall_seconds,
            "in_flight": run.in_flight,
            "rounds_timeline": run.report["rounds_timeline"],
        }
    )


def emulated(config: ClientConfig) -> Network | None:
    """The network that the servers emulate; without one, `loopback` when every server is on this machine."""
    if config.network is not None:
        return config.network
    hosts = {config.peers.of(role).rsplit(":", 1)[0] for role in DEFAULT_PORTS}
    return profile("loopback") if hosts <= {"127.0.0.1", "localhost", "[::1]"} else None


def network_of(config: ClientConfig) -> str:
    """The name of that network; `remote` when the servers stand on one that is not emulated."""
    found = emulated(config)
    return found.name if found else "remote"

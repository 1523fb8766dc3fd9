"""`ditto evaluate`: how good a model's answers are, in floats, by the plain interpreter and under MPC."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.asked import asking, settings_for
from ditto.cli.common import ConfigFile, Json, RangeCheck, emit, note, out
from ditto.cli.evaluate_show import Watcher, show
from ditto.cli.flying import IN_FLIGHT, InFlight, one_at_a_time
from ditto.cli.run import network_of
from ditto.cli.waiting import servers
from ditto.client import store
from ditto.client.local_cluster import client_config
from ditto.errors import DittoError, Interrupted, UsageError

if TYPE_CHECKING:
    from ditto.cli.asked import Model
    from ditto.evaluation.modes import Ask
    from ditto.evaluation.records import Answers, Setup
    from ditto.evaluation.subject import Subject
    from ditto.models import Answer, Checkpoint, Description, Dimensions
    from ditto.models.architecture import Tensors

TEXTS, WINDOWS = 8, 4  # in a job, unless --batch says so


class Split(StrEnum):
    train = "train"
    dev = "dev"


def evaluate(
    task: Annotated[
        str,
        typer.Option(help="sst2, cola, rte, stsb, or a file: CSV or .tsv with text, text2, label; a text for a GPT-2."),
    ],
    model: Annotated[
        str | None, typer.Option(help="A model imported before, under MPC also shared; for mpc alone, a shared one.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="fp32, plain (the program, interpreted), mpc; several with commas, to compare them.")
    ] = "plain",
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many examples of a seeded shuffle.", show_default="all")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="DITTO_DATA", help="Where the tasks' directories are: sst2/dev.tsv, …")
    ] = None,
    split: Annotated[Split, typer.Option(help="Of a task known by name.")] = Split.dev,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, mcc, spearman or pearson.", show_default="the task's")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="fp32: this checkpoint, in the place of the one that was imported.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples in a job.", show_default="8, or 4 windows")] = None,
    in_flight: InFlight = IN_FLIGHT,
    context: Annotated[
        int | None, typer.Option(min=1, help="A GPT-2's window, in tokens.", show_default="all positions")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice and the order.")] = 0,
    answers: Annotated[
        Path | None, typer.Option(help="A file of answers, a line each; with it the same command goes on.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this time, to go on later.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="mpc on a cluster of its own, on this machine, which ends with the command.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="With --local: threads of each server.")] = 1,
    range_check: RangeCheck = True,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Measure a model on labelled texts, or a language model on a text. Interrupted, the same command goes on."""
    began = time.monotonic()
    modes = _modes(mode)
    cluster = _Cluster(local, threads, config, range_check)
    if local and config:
        raise UsageError("give one of --local and --config")
    if checkpoint is not None and "fp32" not in modes:
        raise UsageError("--checkpoint is for --mode fp32")
    if model is None and (modes != ["fp32"] or checkpoint is None):
        raise UsageError("--model NAME is missing; without one, --mode fp32 --checkpoint DIR")
    from ditto.evaluation.records import opened
    from ditto.evaluation.run import run, summary
    from ditto.evaluation.subject import chosen, jobs_of
    from ditto.ring.malloc import tune_memory
    from ditto.train.data import TASKS

    tune_memory()
    say: Callable[[str], None] = (lambda text: None) if json else note
    asked = _asked(model, modes, checkpoint, cluster)
    named = Path(task).name if asked.generates or task not in TASKS else task
    subject = _windows(asked, task, context) if asked.generates else _texts(asked, task, data, split, metric, truncate)
    rows = chosen(subject.size, limit, seed)
    subject.prepare(rows)
    setup: Setup = {"task": named, "texts": subject.digest, "modes": modes, "seed": seed, "truncate": truncate}
    setup |= asked.digests(modes) | {"range_check": range_check and "mpc" in modes}
    size = batch or (WINDOWS if asked.generates else TEXTS)
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(opened(answers, setup))
        jobs = jobs_of(subject, [row for row in rows if row not in found.records], size, seed)
        before = [found.records[row] for row in rows if row in found.records]
        if before:
            say(f"{answers}: going on with {len(before):,} of {len(rows):,} examples")
        watcher = stack.enter_context(Watcher(subject, modes, before, len(rows), quiet=json))
        deadline = began + 60 * minutes if minutes is not None else float("inf")
        try:
            asks = _asks(asked, modes, cluster, stack, json) if jobs else {}
            watcher.start()
            with contextlib.closing(run(subject, asks, _until(jobs, deadline), in_flight, one_at_a_time(json))) as done:
                for records in done:
                    found.add(records)
                    watcher.add(records)
        except KeyboardInterrupt:
            raise Interrupted(_stopped(found, rows, answers)) from None
        except DittoError:
            if answers:
                say(_stopped(found, rows, answers))
            raise
    records = [found.records[row] for row in rows if row in found.records]
    about = {"task": named, "model": model, "preset": asked.description.preset if asked.description else None}
    document = about | {
        "split": split.value if task in TASKS else None, "examples": subject.size, "chosen": len(rows), "seed": seed,
        "batch": size, "network": cluster.network if "mpc" in modes else None,
        "in_flight": in_flight if "mpc" in modes else None, "finished": len(records) == len(rows),
        "results": [about | row for row in summary(subject, records, modes)],
    }  # fmt: skip
    if json:
        emit(document)
        return
    show(document)
    if not document["finished"]:
        out.print(_stopped(found, rows, answers))


def _modes(text: str) -> list[str]:
    from ditto.evaluation.modes import MODES

    named = [name.strip() for name in text.split(",")]
    unknown = [name for name in named if name not in MODES]
    if unknown or not named:
        raise UsageError(f"--mode {text!r}: of {', '.join(MODES)}, with commas between them")
    return [name for name in MODES if name in named]


def _until(jobs: Sequence[list[int]], deadline: float) -> Iterator[list[int]]:
    """One at least; none begins after the deadline."""
    for number, job in enumerate(jobs):
        if number and time.monotonic() > deadline:
            return
        yield job


def _stopped(found: "Answers", rows: list[int], answers: Path | None) -> str:
    done = sum(row in found.records for row in rows)
    how = "the same command goes on from there" if answers else "with --answers FILE the same command would go on"
    return f"stopped after {done:,} of {len(rows):,} examples; {how}"


@dataclass(frozen=True)
class _Asked:
    """A model: what is imported, or public, of it, its checkpoint in floats where that is asked, or has the public
    tables."""

    stored: "Model | None"
    description: "Description | None"
    checkpoint: "Checkpoint | None"
    tables: "Tensors | None"

    @property
    def dimensions(self) -> "Dimensions":
        found = self.description or self.checkpoint
        assert found is not None
        return found.dimensions

    @property
    def answer(self) -> "Answer":
        from ditto.models import architecture_of

        if self.description is not None:
            return architecture_of(self.description.architecture).answer
        assert self.checkpoint is not None
        return self.checkpoint.architecture.answer

    @property
    def generates(self) -> bool:
        return self.answer == "text"

    @property
    def words(self) -> Path:
        """Where its tokenizer lies."""
        if self.stored is not None:
            return self.stored.files
        assert self.checkpoint is not None and self.checkpoint.directory is not None
        return self.checkpoint.directory

    def digests(self, modes: list[str]) -> dict[str, Any]:
        """Of what the answers follow from."""
        from ditto.evaluation.records import digest_of

        made: dict[str, Any] = {"model": None, "checkpoint": None}
        if self.stored is not None and modes != ["fp32"]:
            made["model"] = self.stored.digest
        if self.checkpoint is not None and "fp32" in modes:
            made["checkpoint"] = digest_of(self.checkpoint.tensors)
        return made


def _asked(name: str | None, modes: list[str], given: Path | None, cluster: "_Cluster") -> _Asked:
    from ditto.models import load_checkpoint

    stored = _stored(name, modes, cluster) if name is not None else None
    description = stored.description if stored else None
    public = description is not None and description.embeddings == "public" and modes != ["fp32"]
    floats = load_checkpoint(given or _origin(stored)) if "fp32" in modes else None
    tables = None
    if public:
        tables = (floats if floats and not given else load_checkpoint(_origin(stored))).tensors
    if description and floats:
        for field in ("labels", "vocabulary"):
            ours, theirs = (getattr(x.dimensions, field) for x in (description, floats))
            if ours != theirs:
                raise UsageError(f"{given}: another {field} than {name}'s, so their answers cannot be compared")
    return _Asked(stored, description, floats, tables)


def _stored(name: str, modes: list[str], cluster: "_Cluster") -> "Model":
    """What is imported; where nothing is and only the servers are asked, what is public of the shared model."""
    if modes == ["mpc"] and not cluster.local and store.find(name) is None:
        with asking(name, settings_for(name, cluster.config)) as (_, found):
            return found
    return store.load(name)


def _origin(stored: "Model | None") -> Path:
    assert stored is not None
    return stored.checkpoint


def _texts(asked: _Asked, task: str, data: Path | None, split: Split, metric: str | None, truncate: bool) -> "Subject":
    from ditto.evaluation.texts import LabelledTexts
    from ditto.models.tokenizer import Tokenizer
    from ditto.train.data import TASKS, examples_from, examples_of

    if task in TASKS:
        if data is None:
            raise UsageError(f"--data DIR is missing: the directory that holds {task}/")
        examples = examples_of(task, split.value, data)
    elif Path(task).is_file():
        examples = examples_from(Path(task))
    else:
        raise UsageError(f"--task {task}: no such file, and no task known by name ({', '.join(TASKS)})")
    return LabelledTexts(
        examples, Tokenizer.load(asked.words), asked.answer, asked.dimensions, TASKS.get(task), metric, truncate
    )


def _windows(asked: _Asked, task: str, context: int | None) -> "Subject":
    from ditto.evaluation.language import Windows
    from ditto.train.text import BytePairs, read_text

    longest = asked.dimensions.positions
    if context is not None and context > longest:
        raise UsageError(f"--context {context}: this model takes at most {longest}")
    return Windows(BytePairs(asked.words).encode(read_text(Path(task))), context or longest)


@dataclass(frozen=True)
class _Cluster:
    """Where `mpc` runs."""

    local: bool
    threads: int
    config: Path | None
    guard: bool

    @property
    def network(self) -> str:
        return "loopback" if self.local else network_of(client_config(self.config))


def _asks(
    asked: _Asked, modes: list[str], cluster: _Cluster, stack: contextlib.ExitStack, quiet: bool
) -> "dict[str, Ask]":
    """What each mode asks. Of `mpc`, servers that were started here end with `stack`."""
    from ditto.client.client import Client
    from ditto.evaluation.modes import by_interpreter, in_floats, on_shares

    asks: dict[str, Ask] = {}
    if asked.checkpoint is not None and "fp32" in modes:
        asks["fp32"] = in_floats(asked.checkpoint)
    if asked.stored is None or asked.description is None or modes == ["fp32"]:
        return asks
    weights = store.load(asked.description.name).weights() if "plain" in modes or cluster.local else {}
    if "plain" in modes:
        asks["plain"] = by_interpreter(asked.description, weights, asked.tables)
    if "mpc" in modes:
        if cluster.local:
            if not quiet:
                note("starting a dealer, two parties and a coordinator, and sharing the model")
            settings = stack.enter_context(servers(cluster.threads, quiet)).client_config()
        else:
            settings = client_config(cluster.config)
        client = stack.enter_context(Client(settings))
        if cluster.local:
            client.share_model(asked.description, weights)
        elif client.get_model(asked.description.name) != asked.description:
            name = asked.description.name
            raise UsageError(f"{name} was shared before it was imported as it is here: ditto model share {name}")
        asks["mpc"] = on_shares(client, asked.description, asked.tables, cluster.guard)
    return asks

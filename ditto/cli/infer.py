"""`ditto infer`: ask a shared model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.answer_file import DIGITS, AnswerFile, opened
from ditto.cli.common import (
    ConfigFile,
    Json,
    RangeCheck,
    ReportFile,
    Strict,
    TraceFile,
    check_strict,
    emit,
    note,
    warn_of_range,
)
from ditto.cli.infer_show import show, show_written
from ditto.cli.jobs import BATCH, Job, answer, jobs_of, tokenized
from ditto.cli.report import CostFiles
from ditto.cli.run import Run, counting, document, emulated, network_of, watching
from ditto.cli.texts import Question, Questions, pair_up, read_questions
from ditto.errors import DittoError, Interrupted, UsageError
from ditto.wall import Wall

if TYPE_CHECKING:
    from ditto.cli.said import Reader
    from ditto.client.client import Client
    from ditto.models import Checkpoint, Description

FEW = 6  # places that a warning names


def infer(
    model: Annotated[str, typer.Option("--model", help="A model shared before.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="A sentence; repeatable.")] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option("--pair", help="The second segment of a pair, whose first is the --text of the same place."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="A file of sentences, or pairs with a tab, one a line; - for stdin. Blank lines are skipped."
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="With --file: write one JSON object a text into this file, as they come."),
    ] = None,
    lines: Annotated[bool, typer.Option("--jsonl", help="With --file: the same objects on stdout.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds already.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the model.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Texts of one job.")] = BATCH,
    check: Annotated[bool, typer.Option("--check", help="Compute in plaintext here too, and compare.")] = False,
    range_check: RangeCheck = True,
    strict: Strict = False,
    report: ReportFile = None,
    trace: TraceFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Compute a model's answer on secret shares of the text."""
    wall = Wall.of_this_process()
    wall.lap("start")
    files = CostFiles.checked(report, trace)
    check_strict(strict, range_check)
    streams = target is not None or lines
    _check_streaming(target, lines, resume, json, file, bool(text))
    asked = _questions(text, pair, file)
    wall.lap("reading")
    if not (streams or check or report or trace or config):
        from ditto.cli.infer_served import by_a_server

        if by_a_server(model, asked, truncate, batch, range_check, strict, json, wall):
            return
    from ditto.cli.asked import asking, settings_for
    from ditto.cli.said import Reader
    from ditto.models import Answer, load_checkpoint

    wall.lap("imports")
    settings = settings_for(model, config)
    with asking(model, settings, wall) as (client, found):
        reader = Reader(found.description, found.tokenizer())
        if reader.answer is Answer.text:
            raise UsageError(f"{model} generates text: ask it with `ditto generate`")
        wall.lap("model")
        description, most = found.description, found.description.dimensions.positions
        rows = tokenized(reader.tokenizer, asked.asked, most, truncate)
        wall.lap("tokenizing")
        # in plaintext, at the client: only for what needs it
        checkpoint = load_checkpoint(found.checkpoint) if check or description.embeddings == "public" else None
        wall.lap("checkpoint")
        asks = _Asks(client, reader, asked, rows.cut, checkpoint, check, range_check, wall)
        bound = {"model": model, "version": found.version[:DIGITS], "input": asked.digest[:DIGITS]}
        numbers = {question.number for question in asked.asked}
        with _sink(streams, target, resume, bound, numbers) as written:
            done = set(written.done) if written else set[int]()
            places = [place for place, question in enumerate(asked.asked) if question.number not in done]
            jobs = jobs_of(asked.asked, rows, places, most, batch)
            if not json and (streams or len(jobs) > 1 or rows.cut or asked.blank):
                note(_said_first(asked, len(done), jobs, rows.cut))
            if not json and streams and jobs:
                from ditto.cli.predicted import predict

                note(predict(description, jobs, range_check, emulated(settings)).line())
            wall.lap("planning")
            try:
                _ask_all(asks, jobs, written, model, quiet=json)
            except KeyboardInterrupt:
                raise Interrupted(written.stopped(len(asked.asked)) if written else "interrupted") from None
            except DittoError:
                if written and jobs:
                    note(written.stopped(len(asked.asked)))
                raise
    summary = _summary(asks, description, network_of(settings), kept=not streams)
    if streams:
        summary |= {"file": str(target) if target else None, "answered_before": len(done)}
    summary["spent"] = wall.document()
    if json:
        emit(summary)
    elif streams:
        show_written(summary)
    else:
        show([question.text for question in asked.asked], summary, reader)
    wall.lap("printing")
    if jobs:
        files.write(summary | {"spent": wall.document()}, emulated(settings))
    elif report or trace:
        note("nothing was asked, so there is no report")
    if warning := _warning(asks):
        warn_of_range(warning, strict)


def _check_streaming(
    target: Path | None, lines: bool, resume: bool, json: bool, file: Path | None, texts: bool
) -> None:
    if (target or lines) and (file is None or texts):
        raise UsageError("--out and --jsonl are for the lines of a --file, without --text")
    if target and lines:
        raise UsageError("--out FILE or --jsonl, not both")
    if resume and not target:
        raise UsageError("--resume goes on with the file that --out names")
    if lines and json:
        raise UsageError("--jsonl and --json both write to stdout: one of them")


def _questions(text: list[str] | None, pair: list[str] | None, file: Path | None) -> Questions:
    """Those of the options, then those of the file."""
    given = [Question(text, i, f"text {i}") for i, text in enumerate(pair_up(text or [], pair or []), 1)]
    read = read_questions(file) if file is not None else Questions([])
    if not given and not read.asked:
        lines = f": {file} has {read.blank:,} blank lines and no other" if file is not None else ""
        raise UsageError(f"nothing to do: give --text or --file{lines}")
    if given:  # numbers tell texts apart
        read = Questions([Question(q.text, len(given) + i, q.place) for i, q in enumerate(read.asked, 1)], read.blank)
    return Questions([*given, *read.asked], read.blank, read.digest)


@dataclass
class _Asks:
    """What every job is asked with, and what came of those that were."""

    client: "Client"
    reader: "Reader"
    asked: Questions
    cut: set[int]
    checkpoint: "Checkpoint | None"
    check: bool
    guard: bool
    wall: Wall
    run: Run = field(default_factory=Run)
    results: dict[int, Any] = field(default_factory=dict)  # by place
    reference: dict[int, Any] = field(default_factory=dict)
    wrong: list[int] = field(default_factory=list)  # places whose values left their range
    worst: float = 0.0  # difference to plaintext


@contextmanager
def _sink(
    streams: bool, target: Path | None, resume: bool, bound: dict[str, str], numbers: set[int]
) -> Iterator[AnswerFile | None]:
    if not streams:
        yield None
        return
    with opened(target, resume, bound, numbers) as found:
        yield found


def _said_first(asked: Questions, done: int, jobs: Sequence[Job], cut: set[int]) -> str:
    """What is to be done, in one line."""
    parts = [_many(len(asked.asked), "text")]
    if done:
        parts.append(f"{done:,} answered before")
    if asked.blank:
        parts.append(f"{_many(asked.blank, 'blank line')} skipped")
    if cut:
        parts.append(f"{len(cut):,} cut to the model's length")
    if jobs:
        widths = ", ".join(map(str, sorted({job.width for job in jobs})))
        parts.append(f"{_many(len(jobs), 'job')}, padded to {widths} tokens")
    return "; ".join(parts)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _ask_all(asks: _Asks, jobs: Sequence[Job], written: AnswerFile | None, model: str, quiet: bool) -> None:
    """Job after job, its answers written or kept before the next one begins."""
    tables = asks.checkpoint.tensors if asks.checkpoint else None
    many = len(jobs) > 1
    shapes = [job.shape for job in jobs]
    with counting(shapes, quiet) if many else watching(quiet) as watcher:
        for job in jobs:
            watcher.job(model)
            values, report = answer(
                asks.client, asks.reader.description, job, tables, asks.guard, watcher.event, watcher.program
            )
            asks.wall.lap_of(report["parts"], "decoding")
            reference = asks.checkpoint.reference(job.batch) if asks.check and asks.checkpoint else None
            if reference is not None:
                asks.wall.lap("plaintext check")
            _enter(asks, job, values, report, reference, written)
            asks.wall.lap("writing" if written else "decoding")


def _enter(
    asks: _Asks, job: Job, values: list[Any], report: dict[str, Any], reference: list[Any] | None,
    written: AnswerFile | None,
) -> None:  # fmt: skip
    from ditto.cli.report import max_abs_error

    in_range = report["in_range"]
    if in_range is False:
        asks.wrong += job.places
    if reference is not None:
        asks.worst = max(asks.worst, max_abs_error(values, reference))
    if written is None:
        asks.results |= dict(zip(job.places, values, strict=True))
        asks.reference |= dict(zip(job.places, reference or [], strict=False))
    else:
        written.write([_row(asks, job, i, value, report, reference) for i, value in enumerate(values)])
    asks.run.add([], report, job.width, report["wall_seconds"])
    asks.run.in_range += [in_range] * len(values)


def _row(
    asks: _Asks, job: Job, i: int, values: list[Any], report: dict[str, Any], reference: list[Any] | None
) -> dict[str, Any]:
    """One text of a job, as a line of the file: `docs/operating.md` lists the fields."""
    from ditto.cli.report import max_abs_error
    from ditto.net.transport import short

    place = job.places[i]
    question = asks.asked.asked[place]
    row: dict[str, Any] = {"line": question.number} | asks.reader.fields(question.text, values)
    row |= {"values": values, "in_range": report["in_range"]}
    if place in asks.cut:
        row["truncated"] = True
    if reference is not None:
        row["max_abs_error"] = max_abs_error(values, reference[i])
    count, width = job.shape
    return row | {"job": short(report["job"]), "texts": count, "tokens": width, "seconds": report["wall_seconds"]}


def _summary(asks: _Asks, description: "Description", network: str, *, kept: bool) -> dict[str, Any]:
    """The document of `--json`. Answers in the order of the texts, where they were `kept`."""
    run, asked = asks.run, asks.asked.asked
    marks = [fine for fine in run.in_range if fine is not None]
    if not run.report:
        return {"model": description.name, "preset": description.preset, "texts": 0, "jobs": 0}
    run.results = [asks.results[place] for place in range(len(asked))] if kept else []
    run.reference = [asks.reference[place] for place in range(len(asked))] if kept and asks.check else []
    found = document(run, description, network, checked=asks.check)
    found["texts"] = len(run.in_range)
    if asks.check:
        found["max_abs_error"] = asks.worst
    if kept:
        answers = [asks.reader.fields(question.text, run.results[i]) for i, question in enumerate(asked)]
        if any(answers):
            found["answers"] = answers
    else:
        found.pop("output")
        found.pop("plaintext_output", None)
    found |= {"truncated_texts": sorted(asks.cut), "blank_lines": asks.asked.blank}
    found |= {"in_range": not run.marks if marks else None, "out_of_range_layers": list(run.marks)}
    return found | {"out_of_range_texts": sorted(asks.wrong)}


def _warning(asks: _Asks) -> str:
    """Of values that left their range; empty where none did."""
    if not asks.run.marks:
        return ""
    from ditto.client.ranges import sentence

    places = [asks.asked.asked[place].place for place in sorted(asks.wrong)]
    few, more = ", ".join(places[:FEW]), f" and {len(places) - FEW:,} more" if len(places) > FEW else ""
    whose = "the answer" if len(asks.asked.asked) == 1 else f"the answers to {few}{more}"
    return sentence(asks.run.marks, whose)

"""`ditto infer`: ask a shared model."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ditto.cli.answer_file import DIGITS, AnswerFile, opened
from ditto.cli.asks import Asks, enter, said_first, summary_of, warning_of
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
from ditto.cli.flying import IN_FLIGHT, InFlight, one_at_a_time
from ditto.cli.infer_show import show, show_written
from ditto.cli.jobs import BATCH, Job, answer, jobs_of, tokenized
from ditto.cli.report import CostFiles
from ditto.cli.run import counting, emulated, network_of, watching
from ditto.cli.texts import Question, Questions, pair_up, read_questions
from ditto.client.flight import Ending, flown
from ditto.errors import DittoError, Interrupted, UsageError
from ditto.wall import Wall


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
    in_flight: InFlight = IN_FLIGHT,
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

        if by_a_server(model, asked, truncate, batch, in_flight, range_check, strict, json, wall):
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
        asks = Asks(client, reader, asked, rows.cut, checkpoint, check, range_check, wall)
        bound = {"model": model, "version": found.version[:DIGITS], "input": asked.digest[:DIGITS]}
        numbers = {question.number for question in asked.asked}
        with _sink(streams, target, resume, bound, numbers) as written:
            done = set(written.done) if written else set[int]()
            places = [place for place, question in enumerate(asked.asked) if question.number not in done]
            jobs = jobs_of(asked.asked, rows, places, most, batch)
            if not json and (streams or len(jobs) > 1 or rows.cut or asked.blank):
                note(said_first(asked, len(done), jobs, rows.cut))
            if not json and streams and jobs:
                from ditto.cli.predicted import predict

                note(predict(description, jobs, range_check, emulated(settings)).line())
            wall.lap("planning")
            try:
                _ask_all(asks, jobs, written, model, in_flight, quiet=json)
            except KeyboardInterrupt:
                raise Interrupted(written.stopped(len(asked.asked)) if written else "interrupted") from None
            except DittoError:
                if written and jobs:
                    note(written.stopped(len(asked.asked)))
                raise
    summary = summary_of(asks, description, network_of(settings), kept=not streams)
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
    if warning := warning_of(asks):
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


@contextmanager
def _sink(
    streams: bool, target: Path | None, resume: bool, bound: dict[str, str], numbers: set[int]
) -> Iterator[AnswerFile | None]:
    if not streams:
        yield None
        return
    with opened(target, resume, bound, numbers) as found:
        yield found


def _ask_all(
    asks: Asks, jobs: Sequence[Job], written: AnswerFile | None, model: str, in_flight: int, quiet: bool
) -> None:
    """Each job's answers are written or kept in order, while the next jobs are under way."""
    tables = asks.checkpoint.tensors if asks.checkpoint else None
    asks.run.in_flight = min(in_flight, max(1, len(jobs)))
    with counting([job.shape for job in jobs], quiet) if len(jobs) > 1 else watching(quiet) as watcher:

        def one(at: int, ending: Ending) -> tuple[list[Any], dict[str, Any]]:
            follow = watcher.begin(at, model)
            description = asks.reader.description
            return answer(asks.client, description, jobs[at], tables, asks.guard, follow.event, follow.program, ending)

        with closing(flown(range(len(jobs)), one, in_flight, one_at_a_time(quiet))) as landed:
            for each in landed:
                watcher.done(each.job)
                job, (values, report) = jobs[each.job], each.value
                asks.wall.lap_of(report["parts"], "decoding")
                reference = asks.checkpoint.reference(job.batch) if asks.check and asks.checkpoint else None
                if reference is not None:
                    asks.wall.lap("plaintext check")
                enter(asks, job, values, report, each.seconds, reference, written)
                asks.wall.lap("writing" if written else "decoding")

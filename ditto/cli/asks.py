"""What jobs of `ditto infer` are asked with, what came of them, and what is said of that, whoever prints it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditto.cli.answer_file import AnswerFile
from ditto.cli.jobs import Job
from ditto.cli.run import Run, document
from ditto.cli.texts import Questions
from ditto.client.verdict import Verdict, kind_of, together, verdict
from ditto.wall import Wall

if TYPE_CHECKING:
    from ditto.cli.said import Reader
    from ditto.client.client import Client
    from ditto.models import Checkpoint, Description

FEW = 6  # places that a warning names


@dataclass
class Asks:
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
    worst: float = 0.0  # difference to plaintext of answers that were written and not kept
    verdicts: list[Verdict] = field(default_factory=list)  # on these, by job


def said_first(asked: Questions, done: int, jobs: Sequence[Job], cut: set[int]) -> str:
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


def enter(
    asks: Asks, job: Job, values: list[Any], report: dict[str, Any], seconds: float, reference: list[Any] | None,
    written: AnswerFile | None,
) -> None:  # fmt: skip
    """A job's answers. `seconds`: of the wall, beside those of the jobs before it."""
    from ditto.cli.report import max_abs_error

    in_range = report["in_range"]
    if in_range is False:
        asks.wrong += job.places
    if written is None:
        asks.results |= dict(zip(job.places, values, strict=True))
        asks.reference |= dict(zip(job.places, reference or [], strict=False))
    else:
        if reference is not None:
            asks.worst = max(asks.worst, max_abs_error(values, reference))
            asks.verdicts.append(verdict(kind_of(asks.reader.description), values, reference))
        written.write([_row(asks, job, i, value, report, reference) for i, value in enumerate(values)])
    asks.run.add([], report, job.width, seconds)
    asks.run.in_range += [in_range] * len(values)


def _row(
    asks: Asks, job: Job, i: int, values: list[Any], report: dict[str, Any], reference: list[Any] | None
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


def summary_of(asks: Asks, description: "Description", network: str, *, kept: bool) -> dict[str, Any]:
    """The document of `--json`. Answers in the order of the texts, where they were `kept`."""
    run, asked = asks.run, asks.asked.asked
    marks = [fine for fine in run.in_range if fine is not None]
    if not run.report:
        return {"model": description.name, "preset": description.preset, "texts": 0, "jobs": 0}
    run.results = [asks.results[place] for place in range(len(asked))] if kept else []
    run.reference = [asks.reference[place] for place in range(len(asked))] if kept and asks.check else []
    found = document(run, description, network, checked=asks.check)
    found["texts"] = len(run.in_range)
    if kept:
        answers = [asks.reader.fields(question.text, run.results[i]) for i, question in enumerate(asked)]
        if any(answers):
            found["answers"] = answers
    else:
        found.pop("output")
        if "plaintext_output" in found:
            del found["plaintext_output"]
            found |= {"max_abs_error": asks.worst} | together(asks.verdicts).document()
    found |= {"truncated_texts": sorted(asks.cut), "blank_lines": asks.asked.blank}
    found |= {"in_range": not run.marks if marks else None, "out_of_range_layers": list(run.marks)}
    return found | {"out_of_range_texts": sorted(asks.wrong)}


def warning_of(asks: Asks) -> str:
    """Of values that left their range; empty where none did."""
    if not asks.run.marks:
        return ""
    from ditto.client.ranges import sentence

    places = [asks.asked.asked[place].place for place in sorted(asks.wrong)]
    few, more = ", ".join(places[:FEW]), f" and {len(places) - FEW:,} more" if len(places) > FEW else ""
    whose = "the answer" if len(asks.asked.asked) == 1 else f"the answers to {few}{more}"
    return sentence(asks.run.marks, whose)

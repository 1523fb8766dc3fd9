"""`ditto infer`: ask a shared model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.asked import asking, settings_for
from ditto.cli.common import (
    ConfigFile,
    Json,
    RangeCheck,
    ReportFile,
    Strict,
    TraceFile,
    check_strict,
    emit,
    one_line,
    out,
    warn_of_range,
)
from ditto.cli.report import CostFiles, print_costs
from ditto.cli.run import Run, document, emulated, encode_all, network_of, run_batch, watching
from ditto.cli.texts import pair_up, read_file, read_lines
from ditto.errors import UsageError

if TYPE_CHECKING:
    from ditto.models import Answer
    from ditto.models.tokenizer import Text

Show = Callable[[Any, tuple[str, ...]], str]  # of an answer and the labels


def infer(
    model: Annotated[str, typer.Option("--model", help="A model shared before.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="A sentence; repeatable.")] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option("--pair", help="The second segment of a pair, whose first is the --text of the same place."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A file of sentences, or pairs with a tab, one a line; - for stdin.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compute in plaintext here too, and compare.")] = False,
    range_check: RangeCheck = True,
    strict: Strict = False,
    report: ReportFile = None,
    trace: TraceFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Compute a model's answer on secret shares of the text."""
    files = CostFiles.checked(report, trace)
    check_strict(strict, range_check)
    texts = _texts(text, pair, file)
    from ditto.models import Answer, architecture_of, load_checkpoint

    settings = settings_for(model, config)
    run = Run()
    with asking(model, settings) as (client, found), watching(json) as watcher:
        description = found.description
        answer = architecture_of(description.architecture).answer
        if answer is Answer.text:
            raise UsageError(f"{model} generates text: ask it with `ditto generate`")
        batches = encode_all(found.tokenizer(), texts, description.dimensions.positions)
        # in plaintext, at the client: only for what needs it
        checkpoint = load_checkpoint(found.checkpoint) if check or description.embeddings == "public" else None
        for i, batch in enumerate(batches, 1):
            watcher.job(model if len(batches) == 1 else f"{model} {i}/{len(batches)}")
            tables = checkpoint.tensors if checkpoint else None
            run_batch(client, description, batch, watcher, run, tables, range_check)
    if check and checkpoint:
        for batch in batches:
            run.reference += checkpoint.reference(batch)
    summary = document(run, description, network_of(settings), checked=check) | _ranges(run)
    if json:
        emit(summary)
    else:
        _show(texts, summary, answer, description.dimensions.labels)
    files.write(summary, emulated(settings))
    if run.marks:
        from ditto.client.ranges import sentence

        wrong = [i + 1 for i, fine in enumerate(run.in_range) if not fine]
        whose = "the answer" if len(texts) == 1 else f"the answers to texts {wrong[0]} to {wrong[-1]}"
        warn_of_range(sentence(run.marks, whose), strict)


def _ranges(run: Run) -> dict[str, Any]:
    from ditto.client.ranges import fields

    found = fields(None not in run.in_range, run.marks)
    return found | {"out_of_range_texts": [i for i, fine in enumerate(run.in_range) if fine is False]}


def _texts(text: list[str] | None, pair: list[str] | None, file: Path | None) -> "list[Text]":
    texts = pair_up(text or [], pair or [])
    if file is not None:
        content = _standard_input() if str(file) == "-" else read_file(file)
        texts += read_lines(content, "standard input" if str(file) == "-" else str(file))
    if not texts:
        raise UsageError("nothing to do: give --text or --file")
    return texts


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: no text: {error}") from None


def _show(texts: "list[Text]", summary: dict[str, Any], answer: "Answer", labels: tuple[str, ...]) -> None:
    shown: dict[str, Show] = {"labels": _labels, "tokens": _tokens, "span": _span}
    lines = shown.get(answer, _vector)
    for text, result in zip(texts, summary["output"], strict=True):
        out.print(text if isinstance(text, str) else "\n+ ".join(text), style="bold")
        out.print(f"  {lines(result, tuple(map(one_line, labels)))}")
    if "verdict_text" in summary:
        out.print(summary["verdict_text"])
    out.print()
    print_costs(summary)
    out.print(f"\nthe model belongs to {one_line(summary['owner'])}")
    out.print(f"{summary['texts']} text(s) padded to {summary['seq']} tokens, {summary['wall_seconds']:.2f} s in all")


def _best(logits: list[float]) -> int:
    return max(range(len(logits)), key=lambda i: logits[i])


def _vector(result: list[float], labels: tuple[str, ...]) -> str:
    head = ", ".join(f"{value:+.4f}" for value in result[:6])
    return f"[{head}, …]  {len(result)} numbers; --json prints them all"


def _labels(result: list[float], labels: tuple[str, ...]) -> str:
    named = ", ".join(f"{label} {value:+.3f}" for label, value in zip(labels, result, strict=True))
    return f"{labels[_best(result)]}  ({named})"


def _tokens(result: list[list[float]], labels: tuple[str, ...]) -> str:
    return " ".join(labels[_best(logits)] for logits in result) + "  (one label a token, special ones included)"


def _span(result: list[list[float]], labels: tuple[str, ...]) -> str:
    """The likeliest span that does not end before it starts."""
    starts, ends = zip(*result, strict=True)
    first = max(range(len(starts)), key=lambda i: starts[i] + max(ends[i:]))
    last = first + _best(list(ends[first:]))
    return f"tokens {first} to {last}  ({starts[first]:+.3f} and {ends[last]:+.3f})"

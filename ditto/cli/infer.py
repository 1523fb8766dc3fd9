"""`ditto infer`: ask a shared model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli import store
from ditto.cli.common import ConfigFile, Json, ReportFile, client_config, connect, emit, out
from ditto.cli.report import print_costs
from ditto.cli.run import Run, document, emulated, encode_all, network_of, run_batch, watching
from ditto.cli.texts import pair_up, read_lines
from ditto.errors import UsageError
from ditto.report import page as report_html

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models.tokenizer import Text


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
    report: ReportFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Compute a model's answer on secret shares of the text."""
    page = report_html.target(report)
    texts = _texts(text, pair, file)
    stored = store.load(model)
    spec = stored.spec
    if spec["architecture"] == "GPT2LMHeadModel":
        raise UsageError(f"{model} generates text: ask it with `ditto generate`")
    batches = encode_all(stored.tokenizer(), texts, spec["max_length"])
    tensors: dict[str, Tensor] = {}  # in plaintext, at the client: only for what needs them
    if check or spec["embeddings"] == "public":
        from ditto.models import load_checkpoint

        tensors = load_checkpoint(stored.checkpoint).tensors
    run = Run()
    settings = client_config(config)
    with connect(config) as client, watching(json) as watcher:
        for i, batch in enumerate(batches, 1):
            watcher.job(model if len(batches) == 1 else f"{model} {i}/{len(batches)}")
            run_batch(client, spec, batch, watcher, run, tensors)
    if check:
        from ditto.models import plain_float

        for batch in batches:
            run.reference += plain_float(tensors, spec, batch)
    summary = document(run, spec, network_of(settings), checked=check)
    if json:
        emit(summary)
    else:
        _show(texts, summary, spec)
    if page:  # after the answer is out: a full disk does not cost it
        report_html.write(page, report_html.page(summary, emulated(settings)))


def _texts(text: list[str] | None, pair: list[str] | None, file: Path | None) -> "list[Text]":
    texts = pair_up(text or [], pair or [])
    if file is not None:
        if str(file) != "-" and not file.is_file():
            raise UsageError(f"{file}: no such file")
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        texts += read_lines(content, "standard input" if str(file) == "-" else str(file))
    if not texts:
        raise UsageError("nothing to do: give --text or --file")
    return texts


def _show(texts: "list[Text]", summary: dict[str, Any], spec: dict[str, Any]) -> None:
    labels = spec["config"].get("id2label", {})
    for text, result in zip(texts, summary["output"], strict=True):
        out.print(text if isinstance(text, str) else "\n+ ".join(text), style="bold", markup=False)
        if spec["architecture"].endswith("ForSequenceClassification"):
            best = max(range(len(result)), key=lambda i: result[i])
            named = ", ".join(f"{labels.get(str(i), i)} {value:+.3f}" for i, value in enumerate(result))
            out.print(f"  {labels.get(str(best), best)}  ({named})", markup=False)
        else:
            head = ", ".join(f"{value:+.4f}" for value in result[:6])
            out.print(f"  [{head}, …]  {len(result)} numbers; --json prints them all", markup=False)
    if "max_abs_error" in summary:
        out.print(f"largest difference to the plaintext computation: {summary['max_abs_error']:.4f}")
    out.print()
    print_costs(summary)
    out.print(f"\n{summary['texts']} text(s) padded to {summary['seq']} tokens, {summary['wall_seconds']:.2f} s in all")

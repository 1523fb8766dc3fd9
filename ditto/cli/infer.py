"""`ditto infer`: ask a shared model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli import store
from ditto.cli.common import ConfigFile, Json, ReportFile, TraceFile, client_config, connect, emit, out
from ditto.cli.report import CostFiles, print_costs
from ditto.cli.run import Run, document, emulated, encode_all, network_of, run_batch, watching
from ditto.errors import EmptyText, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def infer(
    model: Annotated[str, typer.Option("--model", help="A model shared before.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="A sentence; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file of sentences, one a line; - for stdin.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compute in plaintext here too, and compare.")] = False,
    report: ReportFile = None,
    trace: TraceFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Compute a model's answer on secret shares of the text."""
    files = CostFiles.checked(report, trace)
    texts = _texts(text, file)
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
    files.write(summary, emulated(settings))


def _texts(text: list[str] | None, file: Path | None) -> list[str]:
    texts = list(text or [])
    if file is not None:
        if str(file) != "-" and not file.is_file():
            raise UsageError(f"{file}: no such file")
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        texts += content.splitlines()
    if not texts:
        raise UsageError("nothing to do: give --text or --file")
    for i, line in enumerate(texts, 1):
        if not line.strip():
            raise EmptyText(f"text {i} of {len(texts)} is empty")
    return texts


def _show(texts: list[str], summary: dict[str, Any], spec: dict[str, Any]) -> None:
    labels = spec["config"].get("id2label", {})
    for text, result in zip(texts, summary["output"], strict=True):
        out.print(text, style="bold", markup=False)
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

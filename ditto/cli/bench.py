"""`ditto bench`: measure a shape with random weights of realistic scale."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli import generate as generated
from ditto.cli import generating
from ditto.cli.bench_presets import presets, read_ranges
from ditto.cli.common import PRESET_HELP, Json, ReportFile, TraceFile, emit, note, out
from ditto.cli.report import CostFiles, print_costs
from ditto.cli.run import Run, Watcher, document, run_batch, watching
from ditto.cli.waiting import servers
from ditto.errors import UsageError
from ditto.net.emulation import network as profile
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.client.client import Client
    from ditto.models import Description
    from ditto.models.tokenizer import Batch

app = typer.Typer(help="Measurements.", no_args_is_help=True)


class Shape(StrEnum):
    tiny = "bert-tiny"
    minilm = "minilm"
    base = "bert-base"
    large = "bert-large"
    gpt2_tiny = "gpt2-tiny"
    gpt2 = "gpt2"
    gpt2_medium = "gpt2-medium"


app.command("presets")(presets)


@app.command()
def model(
    model: Annotated[Shape, typer.Option("--model", help="Which shape.")] = Shape.tiny,
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Random sentences, all in one job.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Of a GPT-2: tokens to generate.")] = 1,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers; default: the shape's.")] = None,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "ditto",
    ranges: Annotated[
        Path | None, typer.Option(help="A trained model's ranges, as an imported model's description.json has them.")
    ] = None,
    network: Annotated[str, typer.Option(help="The emulated network: a profile's name or a YAML file.")] = "loopback",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Compute in plaintext too, and compare.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Jobs; the one of median online seconds is reported.")] = 1,
    in_turns: Annotated[
        bool, typer.Option("--in-turns", help="Prepare a layer, then run it: what each phase takes by itself.")
    ] = False,
    report: ReportFile = None,
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """One job of a shape on five processes: the fields of `infer --json`, or of `generate --json`."""
    from ditto.client.client import Client
    from ditto.models import random_batch, random_model
    from ditto.models.random import is_causal
    from ditto.ring.kernels import kernel_of

    emulated, files = profile(network), CostFiles.checked(report, trace)
    causal = is_causal(model.value)
    if tokens > 1 and not causal:
        raise UsageError(f"{model.value} generates no text: --tokens is for GPT-2")
    if causal and check:
        raise UsageError("--check compares sentence vectors and classes; for text there is `ditto generate --check`")
    say = (lambda text: None) if json else note
    say(f"{model.value}: random weights and their calibration")
    real = read_ranges(ranges) if ranges else ()
    description, weights, checkpoint = random_model(model.value, layers, seq, preset, real=real)
    sentences = random_batch(batch, seq)  # the first is the one that the model was calibrated on
    runs: list[Run] = []
    documents: list[dict[str, Any]] = []
    with (
        servers(threads, json, emulated) as cluster,
        Client(cluster.client_config(), in_turns=in_turns) as client,
    ):
        say("sharing the weights")
        client.share_model(description, weights)
        with watching(json) as watcher:
            for i in range(repeat):
                watcher.job(f"{model.value} {i + 1}/{repeat}")
                if causal:
                    documents.append(_generate(client, description, sentences, tokens, emulated.name, watcher))
                    continue
                run_batch(client, description, sentences, watcher, run := Run())
                runs.append(run)
        memory = {p.role: p.peak_rss for p in cluster.status()}
    if check:
        reference = checkpoint.reference(sentences)
        for run in runs:
            run.reference = reference
    documents += [document(run, description, emulated.name, checked=check) for run in runs]
    documents.sort(key=lambda summary: float(summary["online"]["seconds"]))
    summary = documents[(len(documents) - 1) // 2] | {"threads": threads, "peak_rss_bytes": memory}
    # the servers run on this processor, too, and measure for themselves; under load a choice may differ
    summary["kernels"] = {f"{size} bits": kernel_of(size) for size in (16, 32, 64)}
    summary["repeats"] = [
        {"seconds": row["seconds"]} | {phase: row[phase]["seconds"] for phase in ("online", "offline")}
        for row in documents
    ]
    if json:
        emit(summary)
    else:
        _show(summary, memory)
    files.write(summary, emulated)


def _generate(
    client: "Client", description: "Description", batch: "Batch", tokens: int, network: str, watcher: Watcher
) -> dict[str, Any]:
    """One job of text generation after random prompts, the likeliest token each time."""
    from ditto.client.generation import generate
    from ditto.client.sampling import Sampler
    from ditto.models import Plan
    from ditto.models.tokenizer import Prompts

    count, seq = batch.shape
    plan = Plan(count, seq, tokens)
    result = generate(
        client, description, Prompts(batch.ids, [seq] * count), plan, Sampler(), on_event=lambda e: watcher.event(e)
    )
    return generating.document(result, description, plan, network, None)


def _show(summary: dict[str, Any], memory: dict[str, int | None]) -> None:
    print_costs(summary)
    if "per_token" in summary:
        generated.show(summary)
    peaks = ", ".join(f"{role} {size(n)}" for role, n in memory.items() if n)
    if "verdict_text" in summary:
        out.print(summary["verdict_text"])
    texts = f"{summary['texts']} random sentence(s) of {summary['seq']} tokens"
    kernels = ", ".join(f"{kernel} ({ring})" for ring, kernel in summary["kernels"].items())
    out.print(f"\n{texts}, network {summary['network']}; products: {kernels}; peak memory: {peaks}")

"""`ditto bench`: measure a shape with random weights of realistic scale."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from ditto.cli import report_html
from ditto.cli.bench_presets import presets
from ditto.cli.common import Json, ReportFile, emit, note, out, size
from ditto.cli.report import print_costs
from ditto.cli.run import Run, document, run_batch, watching
from ditto.cluster import embedded
from ditto.network import network as profile

app = typer.Typer(help="Measurements.", no_args_is_help=True)


class Shape(StrEnum):
    tiny = "bert-tiny"
    base = "bert-base"
    large = "bert-large"


app.command("presets")(presets)


@app.command()
def model(
    model: Annotated[Shape, typer.Option("--model", help="Which shape.")] = Shape.tiny,
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Random sentences, all in one job.")] = 1,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers; default: the shape's.")] = None,
    preset: Annotated[str, typer.Option(help="Which operation and type each layer uses.")] = "ditto",
    network: Annotated[str, typer.Option(help="The emulated network: a profile's name or a YAML file.")] = "loopback",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Compute in plaintext too, and compare.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Inferences; the fastest online one is reported.")] = 1,
    report: ReportFile = None,
    json: Json = False,
) -> None:
    """One job of a shape on five processes: the fields of `infer --json`."""
    from ditto.client import Client
    from ditto.models import plain_float, random_model
    from ditto.models.importer import random_batch

    emulated, page = profile(network), report_html.target(report)
    say = (lambda text: None) if json else note
    say(f"{model.value}: random weights and their calibration")
    spec, weights, checkpoint = random_model(model.value, layers, seq, preset)
    sentences = random_batch(batch, seq)  # the first is the one that the model was calibrated on
    runs = []
    with embedded(threads=threads, network=emulated) as cluster, Client(cluster.client_config()) as client:
        say("sharing the weights")
        client.share_model(spec, weights)
        with watching(json) as watcher:
            for i in range(repeat):
                watcher.job(f"{model.value} {i + 1}/{repeat}")
                run_batch(client, spec, sentences, watcher, run := Run())
                runs.append(run)
        memory = {p.role: p.peak_rss for p in cluster.status()}
    best = min(runs, key=lambda run: float(run.report["online"]["seconds"]))
    if check:
        best.reference = plain_float(checkpoint.tensors, spec, sentences)
    summary = document(best, spec, emulated.name, checked=check) | {"threads": threads, "peak_rss_bytes": memory}
    if json:
        emit(summary)
    else:
        _show(summary, memory)
    if page:
        report_html.write(page, report_html.page(summary, emulated))


def _show(summary: dict[str, Any], memory: dict[str, int | None]) -> None:
    print_costs(summary)
    peaks = ", ".join(f"{role} {size(n)}" for role, n in memory.items() if n)
    if "max_abs_error" in summary:
        out.print(f"largest difference to the plaintext computation: {summary['max_abs_error']:.4f}")
    texts = f"{summary['texts']} random sentence(s) of {summary['seq']} tokens"
    out.print(f"\n{texts}, network {summary['network']}; peak memory: {peaks}")

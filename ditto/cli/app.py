"""The typer application: its groups, its help, and how an error becomes an exit code."""

import contextlib
import signal
from typing import Annotated, Any

import typer

import ditto
from ditto.cli import (
    audit,
    bench,
    certs,
    cluster,
    demo,
    distill,
    evaluate,
    finetune,
    generate,
    infer,
    keys,
    model,
    plan,
)  # fmt: skip
from ditto.cli.common import ErrorGroup, exit_codes_help

app = typer.Typer(
    cls=ErrorGroup,
    name="ditto",
    help="Private inference of Transformers: two parties compute on secret shares, a dealer helps, nobody else learns.",
    epilog=exit_codes_help(),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.add_typer(certs.app, name="certs")
app.add_typer(cluster.app, name="cluster")
app.add_typer(keys.app, name="keys")
app.add_typer(model.app, name="model")
app.command("infer")(infer.infer)
app.command("generate")(generate.generate)
app.command("evaluate")(evaluate.evaluate)
app.command("finetune")(finetune.finetune)
app.command("distill")(distill.distill)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("audit")(audit.audit)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ditto {ditto.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _terminated(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt  # not a DittoError: nothing between here and the command may take it for its own


def main() -> None:
    """Entry point of the console script."""
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, _terminated)  # so that an embedded cluster is stopped too
    app()
